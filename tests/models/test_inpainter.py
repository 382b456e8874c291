"""The inpainter: starts as the smooth filling it corrects, touches holes only, and learns from views of a scene."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax import memory
from spatia_jax.cameras import Cameras
from spatia_jax.config import load_experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.models.inpainter import InpainterConfig, _look_up
from spatia_jax.models.unet import blocks, unblocks
from spatia_jax.pyramid import fill_holes, shrink
from spatia_jax.training import FitConfig, OptimizerConfig, fit
from spatia_jax.training.examples import load_examples
from spatia_jax.training.objectives import InpainterObjective
from spatia_jax.training.views import build_views, mirrored, view_batches

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"


@pytest.fixture(scope="module")
def model():
    return Model(load_experiment(CONFIG))


@pytest.fixture(scope="module")
def params(model):
    return {
        name: jax.jit(lambda key, n=name: model.init(n, key))(jax.random.key(0, impl="rbg"))
        for name in ("depth", "inpainter")
    }


@pytest.fixture(scope="module")
def shown():
    """Two pictures in [0, 1], premultiplied, of which a quarter is known; panoramas; where the pixels look in them."""
    rng = np.random.default_rng(0)
    coverage = jnp.zeros((2, 32, 64)).at[:, :, :16].set(1.0)
    color = jnp.asarray(rng.random((2, 32, 64, 3)), jnp.float32) * coverage[..., None]
    panorama = jnp.asarray(rng.random((2, 8, 24, 5)), jnp.float32)
    rows, columns = jnp.meshgrid(jnp.linspace(2, 5, 16), jnp.linspace(20, 27, 32), indexing="ij")
    return color, coverage, panorama, jnp.tile(jnp.stack([rows, columns], axis=-1), (2, 1, 1, 1))


def test_starts_as_pull_push(model, params, shown):
    np.testing.assert_allclose(jax.jit(model.inpaint)(params, *shown), fill_holes(*shown[:2]), atol=1e-6)


def test_known_pixels_stay_and_holes_do_not(model, params, shown):
    moved = jax.tree.map(lambda x: x + 0.05, params)
    color, coverage, *_ = shown
    painted = np.asarray(jax.jit(model.inpaint)(moved, *shown))
    known = np.asarray(coverage) > 0
    np.testing.assert_array_equal(painted[known], np.asarray(color)[known])
    assert np.abs(painted - fill_holes(color, coverage))[~known].mean() > 1e-3
    assert painted.min() >= 0
    assert painted.max() <= 1


def test_what_lies_behind_the_camera_matters(model, params, shown):
    rng = np.random.default_rng(2)
    moved = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params)
    *pictures, panorama, places = shown
    inpaint = jax.jit(model.inpaint)
    one, other = (inpaint(moved, *pictures, p, places) for p in (panorama, panorama.at[:, :, 8:16].set(0.0)))
    assert np.abs(one - other).max() > 1e-4


def test_panoramas_are_read_around_the_seam():
    panorama = jnp.arange(2 * 6.0).reshape(2, 6, 1)
    places = jnp.array([[[0.0, 5.5], [0.0, -0.5], [1.0, 6.0], [0.25, 1.5], [-3.0, 2.0]]])
    np.testing.assert_allclose(_look_up(panorama, places)[0, :, 0], [2.5, 2.5, 6.0, 3.0, 2.0])


def test_blocks_and_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(unblocks(blocks(x)), x)


def test_shrinking_keeps_colours_premultiplied():
    color, coverage = jnp.zeros((4, 4, 1)).at[0, 0].set(0.8), jnp.zeros((4, 4)).at[0, 0].set(1.0)
    small, known = shrink(color, coverage, 2)
    np.testing.assert_allclose(small[0, 0, 0] / known[0, 0], 0.8)
    assert float(known[0, 0]) == 0.25


def test_learns_views(model, params, tmp_path):
    few, said = dataclasses.replace(model.config.procedural, scenes=2), []
    small = Model(dataclasses.replace(model.config, procedural=few))
    build_views(small, params, tmp_path / "views", shard_size=1, say=said.append)
    assert len(said) == 2
    rows = load_examples(tmp_path / "views", "views")
    assert rows["truth"].shape == (8, 6, 16, 32, 3)
    (tmp_path / "views" / "views-00001.npz").unlink()
    build_views(small, params, tmp_path / "views", shard_size=1, say=said.append)
    assert len(said) == 3
    jax.tree.map(np.testing.assert_array_equal, load_examples(tmp_path / "views", "views"), rows)

    config = FitConfig(steps=60, batch_size=2, optimizer=OptimizerConfig(learning_rate=3e-3))
    batches, objective = view_batches(tmp_path / "views", batch_size=2, seed=0), InpainterObjective(small)
    state = fit(objective, config, batches, tmp_path / "run", say=lambda line: None)
    loss = jax.jit(lambda params, batch: objective.loss(params, batch, jax.random.key(0))[1])
    scores = [loss(state.params, batches[i]) for i in range(6)]
    gains = [float(score["psnr"] - score["psnr_filled"]) for score in scores]
    assert np.mean(gains) > 0.3


def test_mirrored_views_look_where_they_should(model):
    """A pixel of a mirrored view looks at the mirrored column of the mirrored panorama."""
    rng = np.random.default_rng(1)
    turn = np.asarray(jaxlie.SO3.exp(jnp.asarray(rng.normal(0, 0.4, 3))).as_matrix())
    pose = np.concatenate([turn, np.zeros((3, 1))], axis=1).astype(np.float32)[None]
    shapes = {"color": (1, 4, 6, 3), "truth": (1, 4, 6, 3), "coverage": (1, 4, 6), "panorama": (1, 8, 24, 5)}
    row = {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}
    row |= {"pose": pose, "intrinsics": np.array([[0.8, 1.1, 0.45, 0.55]], np.float32)}
    other = mirrored(row)
    here, there = (memory.places(Cameras(r["pose"], r["intrinsics"]), 4, 6, (8, 24)) for r in (row, other))
    np.testing.assert_allclose(here[..., 0], there[:, :, ::-1, 0], atol=1e-4)
    np.testing.assert_allclose(here[..., 1], 23 - there[:, :, ::-1, 1], atol=1e-4)


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 8"):
        InpainterConfig(widths=(12,))
    with pytest.raises(InputError, match="multiples of 4"):
        InpainterConfig(panorama=(8, 22), panorama_widths=(8, 16))
    config = load_experiment(CONFIG)
    with pytest.raises(InputError, match="clip.width is 68"):
        dataclasses.replace(config, clip=dataclasses.replace(config.clip, width=68))
    with pytest.raises(InputError, match="needs inpainter"):
        dataclasses.replace(config, inpainter=None)

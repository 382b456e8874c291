"""The inpainter: starts as the smooth filling it corrects, touches holes only, and learns from views of a scene."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.data.procedural import ProceduralSource
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.models.inpainter import InpainterConfig
from spatia_jax.models.unet import blocks, unblocks
from spatia_jax.pyramid import fill_holes, shrink
from spatia_jax.training import FitConfig, OptimizerConfig, fit
from spatia_jax.training.examples import load_examples
from spatia_jax.training.objectives import InpainterObjective
from spatia_jax.training.views import build_views, view_batches

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"


@pytest.fixture(scope="module")
def model():
    return Model(load_experiment(CONFIG))


@pytest.fixture(scope="module")
def params(model):
    return {name: jax.jit(lambda key, n=name: model.init(n, key))(jax.random.key(0)) for name in ("depth", "inpainter")}


@pytest.fixture(scope="module")
def shown():
    """Two pictures in [0, 1], premultiplied, of which a quarter is known."""
    rng = np.random.default_rng(0)
    coverage = jnp.zeros((2, 32, 64)).at[:, :, :16].set(1.0)
    return jnp.asarray(rng.random((2, 32, 64, 3)), jnp.float32) * coverage[..., None], coverage


def test_starts_as_pull_push(model, params, shown):
    np.testing.assert_allclose(jax.jit(model.inpaint)(params, *shown), fill_holes(*shown), atol=1e-6)


def test_known_pixels_stay_and_holes_do_not(model, params, shown):
    moved = jax.tree.map(lambda x: x + 0.05, params)
    color, coverage = shown
    painted = np.asarray(jax.jit(model.inpaint)(moved, color, coverage))
    known = np.asarray(coverage) > 0
    np.testing.assert_array_equal(painted[known], np.asarray(color)[known])
    assert np.abs(painted - fill_holes(*shown))[~known].mean() > 1e-3
    assert painted.min() >= 0
    assert painted.max() <= 1


def test_blocks_and_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(unblocks(blocks(x)), x)


def test_shrinking_keeps_colours_premultiplied():
    color, coverage = jnp.zeros((4, 4, 1)).at[0, 0].set(0.8), jnp.zeros((4, 4)).at[0, 0].set(1.0)
    small, known = shrink(color, coverage, 2)
    np.testing.assert_allclose(small[0, 0, 0] / known[0, 0], 0.8)
    assert float(known[0, 0]) == 0.25


def test_learns_views(model, params, tmp_path):
    source, said = [ProceduralSource(model.config.procedural)[i] for i in range(2)], []
    build_views(model, params, source, tmp_path / "views", shard_size=1, say=said.append)
    assert len(said) == 2
    rows = load_examples(tmp_path / "views", "views")
    assert rows["truth"].shape == (48, 16, 32, 3)
    (tmp_path / "views" / "views-00001.npz").unlink()
    build_views(model, params, source, tmp_path / "views", shard_size=1, say=said.append)
    assert len(said) == 3
    jax.tree.map(np.testing.assert_array_equal, load_examples(tmp_path / "views", "views"), rows)

    config = FitConfig(steps=60, batch_size=8, optimizer=OptimizerConfig(learning_rate=3e-3))
    batches, objective = view_batches(tmp_path / "views", batch_size=8, seed=0), InpainterObjective(model)
    state = fit(objective, config, batches, tmp_path / "run", say=lambda line: None)
    loss = jax.jit(lambda params, batch: objective.loss(params, batch, jax.random.key(0))[1])
    scores = [loss(state.params, batches[i]) for i in range(6)]
    gains = [float(score["psnr"] - score["psnr_filled"]) for score in scores]
    assert np.mean(gains) > 0.3


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 8"):
        InpainterConfig(widths=(12,))
    config = load_experiment(CONFIG)
    with pytest.raises(InputError, match="clip.width is 68"):
        dataclasses.replace(config, clip=dataclasses.replace(config.clip, width=68))
    with pytest.raises(InputError, match="needs inpainter"):
        dataclasses.replace(config, inpainter=None)

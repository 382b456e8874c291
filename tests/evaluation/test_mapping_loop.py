"""The mapping loop: what is told, what is scored, and what counts as a moving object."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras.drift import perturb
from spatia_jax.config import load_experiment
from spatia_jax.data.procedural import HELD_OUT, caption, inside_moving, render, sample_path, sample_scene
from spatia_jax.errors import InputError
from spatia_jax.evaluation import mapping_loop
from spatia_jax.model import Model
from spatia_jax.text import train_tokenizer

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"
CLIP_OF = np.repeat(np.arange(3), [17, 16, 16])


@pytest.fixture(scope="module")
def path():
    scene = sample_scene(HELD_OUT + 3)
    return scene, sample_path(HELD_OUT + 3, scene, 49, "there_and_back")


def test_told_poses_drift_evenly(path):
    _, actual = path
    told = perturb(actual, CLIP_OF, 1.0, 0.0, seed=0)
    _, degrees = mapping_loop.pose_errors(told, actual)
    assert degrees[0] < 0.05
    for clip, last in enumerate((16, 32, 48)):  # the turns are about the camera's own axes: nearly additive
        assert 0.7 * (clip + 1) < degrees[last] < 1.05 * (clip + 1)
    aside = perturb(actual, CLIP_OF, 0.0, 2.0, seed=0)
    metres, degrees = mapping_loop.pose_errors(aside, actual)
    gone = np.linalg.norm(np.diff(actual.centers, axis=0), axis=-1).sum()
    assert degrees.max() < 0.05
    assert 0.2 * 0.02 * gone < metres[-1] < 1.01 * 0.02 * gone
    same = perturb(actual, CLIP_OF, 0.0, 0.0, seed=0)
    assert max(error.max() for error in mapping_loop.pose_errors(same, actual)) < 0.05


def test_surfaces_of_moving_objects_are_inside_them(path):
    scene, cameras = path
    times = jnp.arange(49) / 12
    seen = render(scene, cameras[::8], times[::8], 48, 84)
    points = np.asarray(cameras[::8].unproject(seen.depth)).reshape(-1, 3)
    when = np.repeat(times[::8], 48 * 84)
    moving = np.asarray(seen.moving).ravel()
    assert moving.sum() > 100
    assert inside_moving(scene, points, when, margin=0.01)[moving].all()
    assert not inside_moving(scene, points, when, margin=-0.01).any()  # nothing is seen from within
    assert inside_moving(scene, points, when, margin=0.01)[~moving].mean() < 0.01
    later = inside_moving(scene, points, when + 1.0, margin=0.01)[moving]
    assert later.mean() < 0.9  # it has moved on


def test_pooled_masks_are_weighed_by_pixels():
    rows = [
        {"intersection": 1.0, "union": 10.0, "end_m": 1.0, "clip_seconds": [1.0, 2.0]},
        {"intersection": 80.0, "union": 90.0, "end_m": 3.0, "clip_seconds": [3.0, 4.0]},
    ]
    assert mapping_loop.pooled(rows) == {"motion_iou": 0.81, "end_m": 2.0, "clip_seconds": [2.0, 3.0]}


def test_unknown_frames_are_refused():
    config = load_experiment(CONFIG)
    with pytest.raises(InputError, match="frames is 'dreamt'"):
        mapping_loop.evaluate(
            config, {}, None, scenes=[0], clips=2, degrees=1.0, percent=2.0, frames="dreamt", given_depth=True, seed=0
        )


@pytest.mark.slow
@pytest.mark.parametrize("frames", mapping_loop.FRAMES)
def test_the_loop_runs(frames, tmp_path):
    model = Model(load_experiment(CONFIG).tracked())
    init = jax.jit(model.init, static_argnums=0)
    params = {name: init(name, jax.random.key(0, impl="rbg")) for name in model.abstract_params()}
    tokenizer = train_tokenizer([caption(sample_scene(0))], 300, tmp_path / "tokenizer.json")
    result = mapping_loop.evaluate(
        model.config, params, tokenizer, scenes=[0], clips=3, degrees=1.0, percent=2.0, frames=frames,
        given_depth=True, seed=0, say=lambda line: None,
    )  # fmt: skip
    for name in mapping_loop.MAPPERS:
        assert all(np.isfinite(v) for k, v in result[name].items() if k not in ("motion_iou", "clip_seconds"))
        assert name in mapping_loop.table(result)
    assert result["exact"]["end_degrees"] < 0.05
    assert isinstance(mapping_loop.cost_table(result), str)
    assert isinstance(result["scenes"][0]["adjusted"]["clip_seconds"], list)

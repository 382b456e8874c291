"""The consistency terms on a scene whose truth is known: a textured wall, filmed by a camera that moves sideways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax import memory, splat
from spatia_jax.cameras import Cameras
from spatia_jax.data.conditioning import Sequence
from spatia_jax.splat import SplatConfig
from spatia_jax.training.consistency import ConsistencyConfig, pose_error, reprojection_error

SIZE, DISTANCE, SPLATS, CONFIG = (32, 48), 2.0, SplatConfig(radius=0.06, points_per_pixel=8), ConsistencyConfig()


def cameras(offsets):
    pose = jnp.tile(jnp.eye(3, 4), (len(offsets), 1, 1)).at[:, 0, 3].set(-jnp.asarray(offsets))
    return Cameras(pose, jnp.tile(jnp.array([0.8, 1.2, 0.5, 0.5]), (len(offsets), 1)))


@pytest.fixture(scope="module")
def wall():
    """Points of a smooth texture at one depth, wider than any view."""
    x, y = jnp.meshgrid(jnp.linspace(-2.5, 2.5, 150), jnp.linspace(-1.6, 1.6, 96))
    positions = jnp.stack([x, y, jnp.full_like(x, DISTANCE)], -1).reshape(-1, 3)
    phases = jnp.array([0.0, 1.0, 2.0])
    colors = 0.5 + 0.4 * jnp.sin(4 * positions[:, :1] + phases) * jnp.cos(3 * positions[:, 1:2] + phases)
    return memory.insert(
        memory.empty(len(positions)), positions, colors, jnp.ones(len(positions)), jnp.ones(len(positions), bool),
        provenance=0, voxel_size=0.005,
    )  # fmt: skip


def film(wall, views):
    seen = splat.render(wall.positions, wall.colors, wall.valid, views, height=SIZE[0], width=SIZE[1], config=SPLATS)
    return seen.color / jnp.maximum(seen.coverage, 1e-3)[..., None]


@pytest.fixture(scope="module")
def clip(wall):
    views = cameras([0.0, 0.05, 0.1, 0.15])
    frames = jnp.round(film(wall, views) * 255).astype(jnp.uint8)
    return Sequence(frames, jnp.full((4, *SIZE), DISTANCE), jnp.zeros((4, *SIZE), bool), views)


def shown(clip):
    return clip.frames.astype(jnp.float32) / 255


def test_a_sideways_shift_is_read_as_that_pose(wall, clip):
    """A camera 1 % of the depth off has an xi of 1 unit in one of six components."""
    error = jax.jit(lambda frames, key: pose_error(clip, wall, frames, 1, key, CONFIG, SPLATS))
    shifted = film(wall, cameras(np.array([0.0, 0.05, 0.1, 0.15]) + 0.01 * DISTANCE))
    for seed in range(3):
        key = jax.random.key(seed)
        assert float(error(shown(clip), key)) < 1e-8
        np.testing.assert_allclose(float(error(shifted, key)), 1 / 6, rtol=0.25)


def test_frames_that_agree_have_no_reprojection_error_and_others_have(wall, clip):
    error = jax.jit(jax.value_and_grad(lambda frames, key: reprojection_error(clip, frames, 1, key, CONFIG, SPLATS)))
    key = jax.random.key(0)
    right, _ = error(shown(clip), key)
    brighter = shown(clip) * jnp.array([1.0, 1.2, 0.8, 1.1])[:, None, None, None]
    wrong, gradient = error(brighter, key)
    assert float(right) < 2e-3
    assert float(wrong) > 3 * float(right)
    better, _ = error(brighter - 50.0 * gradient, key)
    assert float(better) < float(wrong)
    assert bool(jnp.isfinite(gradient).all())
    assert float(jnp.abs(gradient).sum((1, 2, 3))[jnp.abs(gradient).sum((1, 2, 3)) > 0].size) == 2  # source and target

"""Camera paths in SE(3): endpoints, constant velocity, timing, retracing, resampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.cameras.paths import ease, interpolate, linear, resample, smoothness, there_and_back, twists
from spatia_jax.errors import InputError


@pytest.fixture(scope="module")
def keyposes() -> Cameras:
    """Three poses, a metre and a radian or so apart."""
    tangents = jax.random.uniform(jax.random.key(0), (3, 6), minval=-1.0)
    return Cameras.from_se3(jaxlie.SE3.exp(tangents), jnp.array([1.0, 1.5, 0.5, 0.5]))


@pytest.mark.parametrize("timing", [linear, ease])
def test_a_path_begins_and_ends_at_its_key_poses(keyposes, timing):
    path = interpolate(keyposes, 17, timing)
    assert len(path) == 17
    middle = np.asarray(path.cam_from_world)[[0, 8, 16]]
    np.testing.assert_allclose(middle, keyposes.cam_from_world, atol=2e-6)
    product = np.einsum("vij,vkj->vik", path.rotation, path.rotation)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=2e-6)


def test_velocity_between_two_poses_is_constant(keyposes):
    path = interpolate(keyposes[:2], 9, linear)
    steps = np.asarray(twists(path))
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=5e-6)
    whole = np.asarray(twists(keyposes[:2]))[0]
    np.testing.assert_allclose(steps.sum(axis=0), whole, atol=2e-5)
    assert np.all(np.asarray(smoothness(path)) < 1e-5)


def test_easing_starts_and_stops_gently(keyposes):
    speed = np.linalg.norm(np.asarray(twists(interpolate(keyposes[:2], 33, ease))), axis=-1)
    assert speed[0] < 0.2 * speed.max()
    assert speed[-1] < 0.2 * speed.max()
    assert np.all(np.diff(speed[:16]) > 0)


def test_a_corner_is_rougher_than_a_straight_path(keyposes):
    cornered, straight = interpolate(keyposes, 17, linear), interpolate(keyposes[:2], 17, linear)
    assert np.all(np.asarray(smoothness(cornered)) > 10 * np.asarray(smoothness(straight)))


def test_there_and_back_ends_exactly_where_it_began(keyposes):
    path = interpolate(keyposes, 9)
    both = there_and_back(path)
    assert len(both) == 17
    np.testing.assert_array_equal(both.cam_from_world, both.cam_from_world[::-1])
    np.testing.assert_array_equal(both.cam_from_world[:9], path.cam_from_world)
    assert len(there_and_back(path[:1])) == 1


def test_resampling_keeps_frames_that_coincide(keyposes):
    path = interpolate(keyposes, 9)
    finer = resample(path, 17)
    np.testing.assert_allclose(finer.cam_from_world[::2], path.cam_from_world, atol=5e-6)
    np.testing.assert_allclose(resample(finer, 9).cam_from_world, path.cam_from_world, atol=1e-5)


def test_a_single_key_pose_is_held(keyposes):
    path = interpolate(keyposes[:1], 5)
    np.testing.assert_allclose(path.cam_from_world, np.repeat(keyposes[:1].cam_from_world, 5, axis=0), atol=2e-6)


def test_intrinsics_are_interpolated(keyposes):
    zoom = Cameras(keyposes.cam_from_world[:2], jnp.array([[1.0, 1.5, 0.5, 0.5], [2.0, 3.0, 0.5, 0.5]]))
    np.testing.assert_allclose(interpolate(zoom, 3, linear).intrinsics[1], [1.5, 2.25, 0.5, 0.5], rtol=1e-6)


def test_no_frames_is_an_error(keyposes):
    with pytest.raises(InputError, match="0 frames"):
        interpolate(keyposes, 0)
    with pytest.raises(InputError, match="expected at least 1"):
        interpolate(keyposes[:0], 5)

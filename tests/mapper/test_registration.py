"""Depth carried from one camera of a rig into the other."""

import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper.registration import KINECT, ColorCamera, register
from spatia_jax.mapper.sequence import Sequence

H, W, FRAMES = 24, 32, 2


def wall(metres=2.0):
    """A wall across the view, seen by two depth cameras side by side."""
    poses = jnp.broadcast_to(jnp.eye(3, 4), (FRAMES, 3, 4)).at[1, 0, 3].set(-0.1)
    cameras = Cameras(poses, jnp.broadcast_to(jnp.array([0.9, 0.9 * W / H, 0.5, 0.5]), (FRAMES, 4)))
    depth = np.full((FRAMES, H, W), metres, np.float32)
    return Sequence(["0", "1"], np.zeros((FRAMES, H, W, 3), np.uint8), cameras, depth)


def test_the_same_camera_changes_nothing():
    given = wall()
    given.depth[:, 3, 4] = 0
    found = register(given, ColorCamera(np.eye(4), 0.9))
    np.testing.assert_allclose(found.depth, given.depth, atol=1e-5)
    np.testing.assert_allclose(found.cameras.cam_from_world, given.cameras.cam_from_world, atol=1e-6)


def test_a_camera_behind_sees_the_wall_farther_and_where_it_is():
    back = np.eye(4)
    back[2, 3] = 0.5
    found = register(wall(), ColorCamera(back, 0.9))
    known = found.depth > 0
    assert 0.4 < known.mean() < 0.9  # the wall fills less of the picture
    np.testing.assert_allclose(found.depth[known], 2.5, atol=1e-5)
    points = np.asarray(found.cameras.unproject(jnp.asarray(found.depth)))[known]
    np.testing.assert_allclose(points[:, 2], 2.0, atol=1e-5)


def test_the_nearer_of_two_readings_counts():
    given = wall()
    given.depth[:, :, ::2] = 1.0
    assert register(given, ColorCamera(np.eye(4), 0.45)).depth.max() == 1.0


def test_the_kinects_cameras_are_two_fingers_apart():
    rotation = KINECT.color_from_depth[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert 0.02 < np.linalg.norm(KINECT.color_from_depth[:3, 3]) < 0.03


def test_without_depth_there_is_nothing_to_register():
    given = wall()
    with pytest.raises(InputError, match="both poses and depth"):
        register(Sequence(given.names, given.frames, given.cameras, None), KINECT)

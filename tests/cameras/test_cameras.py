"""Cameras: projection and its inverse, shapes, and the pixel convention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.cameras.conventions import (
    OPENCV,
    OPENGL,
    PYTORCH3D,
    Y_DOWN_FROM_Y_UP,
    Y_DOWN_FROM_Z_UP,
    change_world,
    from_world_from_cam,
    to_world_from_cam,
)

INTRINSICS = jnp.array([0.8, 1.4, 0.47, 0.52])


def random_cameras(seed: int, *shape: int) -> Cameras:
    return Cameras.from_se3(jaxlie.SE3.sample_uniform(jax.random.key(seed), shape), INTRINSICS)


project = jax.jit(Cameras.project, static_argnums=(2, 3))


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_project_undoes_unproject(shape):
    cameras = random_cameras(0, *shape)
    depth = jax.random.uniform(jax.random.key(1), (*shape, 8, 14), minval=0.5, maxval=5.0)
    points = jax.jit(Cameras.unproject)(cameras, depth)
    assert points.shape == (*shape, 8, 14, 3)
    every = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[len(shape) :]), (cameras, points, depth))
    pixels = np.stack(np.meshgrid(np.arange(14), np.arange(8)), axis=-1)
    for i in range(cameras.num_views):
        camera, own_points, own_depth = jax.tree.map(lambda x, i=i: x[i], every)
        uv, z = project(camera, own_points.reshape(-1, 3), 8, 14)
        np.testing.assert_allclose(z.reshape(8, 14), own_depth, rtol=1e-5)
        np.testing.assert_allclose(uv.reshape(8, 14, 2), pixels, atol=1e-4)


def test_all_views_project_as_each_one():
    cameras, points = random_cameras(0, 2, 3), jax.random.normal(jax.random.key(1), (7, 3))
    uv, depth = project(cameras, points, 8, 14)
    one_uv, one_depth = project(cameras[1, 2], points, 8, 14)
    assert uv.shape == (2, 3, 7, 2)
    np.testing.assert_allclose(depth[1, 2], one_depth, rtol=1e-5)
    np.testing.assert_allclose(uv[1, 2], one_uv, rtol=1e-3, atol=1e-3)


def test_normalised_coordinates_run_from_edge_to_edge():
    """The optical axis of a centred camera falls between the middle pixels, at every size."""
    camera = Cameras(jnp.eye(4)[:3], jnp.array([1.0, 1.0, 0.5, 0.5]))
    for height, width in [(8, 14), (128, 224)]:
        uv, _ = camera.project(jnp.array([[0.0, 0.0, 2.0], [1.0, 1.0, 2.0]]), height, width)
        np.testing.assert_allclose(uv[0], [width / 2 - 0.5, height / 2 - 0.5])
        np.testing.assert_allclose(uv[1], [width - 0.5, height - 0.5])  # half a unit at focal 1 is the picture's edge


def test_right_is_u_and_down_is_v():
    camera = Cameras(jnp.eye(4)[:3], INTRINSICS)
    (origin, right, down), _ = camera.project(jnp.array([[0.0, 0, 1], [0.1, 0, 1], [0, 0.1, 1]]), 8, 14)
    assert right[0] > origin[0]
    assert down[1] > origin[1]


def test_centers_and_inverse():
    cameras = random_cameras(2, 5)
    for i in range(5):
        np.testing.assert_allclose(cameras[i].transform(cameras.centers[i : i + 1]), 0, atol=1e-6)
        product = cameras.cam_from_world[i, :, :3] @ cameras.world_from_cam[i, :, :3]
        np.testing.assert_allclose(product, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(cameras.as_se3().inverse().as_matrix()[:, :3], cameras.world_from_cam, atol=1e-6)


def test_points_behind_and_on_the_camera_stay_finite():
    camera = Cameras(jnp.eye(4)[:3], INTRINSICS)
    points = jnp.array([[0.3, 0.2, -1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    gradient = jax.grad(lambda p: camera.project(p, 8, 14)[0].sum())(points)
    uv, depth = camera.project(points, 8, 14)
    assert np.isfinite(uv).all()
    assert np.isfinite(gradient).all()
    assert (depth <= 0).all()


def test_views_are_a_pytree_that_indexes_and_concatenates():
    cameras = random_cameras(3, 4)
    assert len(cameras) == cameras.num_views == 4
    again = Cameras.concatenate([cameras[:1], cameras[1:]])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), cameras, again))
    centers = jax.jit(jax.vmap(lambda camera: camera.centers))(cameras)
    np.testing.assert_allclose(centers, cameras.centers, atol=1e-6)
    with pytest.raises(TypeError):
        len(cameras[0])
    with pytest.raises(IndexError):
        cameras[0][0]


@pytest.mark.parametrize("axes", [OPENCV, OPENGL, PYTORCH3D], ids=lambda axes: axes.name.split(":")[0])
def test_axes_round_trip_and_stay_rotations(axes):
    cameras = random_cameras(4, 3)
    theirs = to_world_from_cam(cameras, axes)
    np.testing.assert_allclose(np.linalg.det(np.asarray(theirs[..., :3])), 1, atol=1e-5)
    np.testing.assert_allclose(theirs[..., 3], cameras.centers, atol=1e-6)
    again = from_world_from_cam(theirs, cameras.intrinsics, axes)
    np.testing.assert_allclose(again.cam_from_world, cameras.cam_from_world, atol=1e-6)


def test_an_opengl_camera_looks_along_minus_z():
    camera = from_world_from_cam(jnp.eye(4)[:3], INTRINSICS, OPENGL)
    assert camera.transform(jnp.array([[0.0, 0.0, -3.0]]))[0, 2] == 3.0
    assert camera.transform(jnp.array([[0.0, 1.0, -3.0]]))[0, 1] == -1.0  # up is minus y


@pytest.mark.parametrize("turn", [Y_DOWN_FROM_Y_UP, Y_DOWN_FROM_Z_UP])
def test_changing_the_world_moves_points_and_cameras_alike(turn):
    cameras, points = random_cameras(5, 3), jax.random.normal(jax.random.key(6), (9, 3))
    turn = jnp.array(turn)
    np.testing.assert_allclose(jnp.linalg.det(turn), 1, atol=1e-6)
    moved = change_world(cameras, turn).transform(points @ turn.T)
    np.testing.assert_allclose(moved, cameras.transform(points), atol=1e-5)


def test_up_becomes_minus_y():
    np.testing.assert_array_equal(jnp.array(Y_DOWN_FROM_Z_UP) @ jnp.array([0.0, 0, 1]), [0, -1, 0])
    np.testing.assert_array_equal(jnp.array(Y_DOWN_FROM_Y_UP) @ jnp.array([0.0, 1, 0]), [0, -1, 0])

"""Panoramas: every point lies where the pixel that shows it looks, the nearest surface wins, nothing is lost behind."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np

from spatia_jax import memory
from spatia_jax.cameras import Cameras
from spatia_jax.memory import panorama as module

SIZE = (32, 112)
RNG = np.random.default_rng(3)


def camera(turn=(0.05, 0.7, 0.1)):
    pose = jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.exp(jnp.array(turn)), jnp.array([0.3, -0.2, 0.5]))
    return Cameras.from_se3(jaxlie.SE3(pose.wxyz_xyz[None]), jnp.array([[0.8, 1.4, 0.5, 0.5]]))


def all_points(monkeypatch):
    monkeypatch.setattr(module, "_THIN", 1)


def test_points_lie_where_their_pixels_look(monkeypatch):
    all_points(monkeypatch)
    view = camera()
    points = view.unproject(jnp.full((1, 8, 14), 2.0)).reshape(-1, 3)
    place = np.asarray(memory.places(view, 8, 14, SIZE)).reshape(-1, 2)
    for point, (row, column) in list(zip(points, place, strict=True))[::5]:
        seen = memory.panoramas(point[None], jnp.ones((1, 3)), jnp.ones(1, bool), view, SIZE)[0]
        assert np.argwhere(np.asarray(seen[..., 3]) > 0).tolist() == [
            [round(float(row)), round(float(column)) % SIZE[1]]
        ]
        np.testing.assert_allclose(seen[..., 4].sum(), 1 / (1 + jnp.linalg.norm(point - view.centers[0])), rtol=1e-5)


def test_the_nearest_surface_wins_and_invalid_points_do_not_count(monkeypatch):
    all_points(monkeypatch)
    view, ahead = camera((0.0, 0.0, 0.0)), jnp.array([0.01, 0.02, 1.0])
    positions = jnp.stack([1.0 * ahead, 1.05 * ahead, 3.0 * ahead, 0.5 * ahead, jnp.full(3, jnp.nan)]) + view.centers
    colors = jnp.array([[1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1], [1.0, 1, 1], [1.0, 1, 1]])
    seen = memory.panoramas(positions, colors, jnp.array([1, 1, 1, 0, 1], bool), view, SIZE)[0]
    assert np.isfinite(seen).all()
    np.testing.assert_allclose(seen[..., :3].sum((0, 1)), [0.5, 0.5, 0.0], atol=1e-6)


def test_a_turning_camera_keeps_what_it_knows():
    points = jnp.asarray(RNG.uniform(-2, 2, (4000, 3)), jnp.float32)
    colors, valid = jnp.asarray(RNG.random((4000, 3)), jnp.float32), jnp.ones(4000, bool)
    one, other = camera((0.0, 0.0, 0.0)), camera((0.0, np.pi / 2, 0.0))
    centers = one.centers - other.centers
    draw = jax.jit(memory.panoramas, static_argnums=4)
    first = draw(points + one.centers, colors, valid, one, SIZE)[0]
    second = draw(points + one.centers - centers, colors, valid, other, SIZE)[0]
    quarter = SIZE[1] // 4
    same = np.isclose(np.roll(first, quarter, axis=1), second, atol=1e-3).all(-1)
    assert same.mean() > 0.95  # the rest: points on the borders of cells

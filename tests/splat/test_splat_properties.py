"""What holds for any cloud: neither order, nor splitting, nor the frame of the world, nor jit changes a picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.splat import SplatConfig, project, rasterize, render, shade
from spatia_jax.splat.projection import disc_radius2

H, W = 33, 50
CONFIG = SplatConfig(radius=0.06)


def cloud(n=700, seed=0):
    rng = np.random.default_rng(seed)
    positions = rng.uniform([-1.5, -1.0, 1.0], [1.5, 1.0, 3.0], (n, 3)).astype(np.float32)
    return jnp.asarray(positions), jnp.asarray(rng.random((n, 3)), jnp.float32), jnp.asarray(rng.random(n) < 0.9)


def path() -> Cameras:
    pose = jnp.broadcast_to(jnp.eye(3, 4), (2, 3, 4)).at[1, :, 3].set(jnp.array([0.2, -0.1, 0.3]))
    return Cameras(pose, jnp.tile(jnp.array([0.9, 0.9 * W / H, 0.47, 0.52]), (2, 1)))


def picture(positions, features, valid, cameras=None, config=CONFIG):
    return render(positions, features, valid, path() if cameras is None else cameras, height=H, width=W, config=config)


def assert_same(a, b, atol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_order_of_points_does_not_matter():
    points = cloud()
    shuffled = jax.random.permutation(jax.random.key(0), 700)
    assert float((picture(*points).coverage > 0).mean()) > 0.4
    # XLA rounds the projection of a point by where it stands in its vectors.
    assert_same(picture(*points), picture(*(leaf[shuffled] for leaf in points)), atol=2e-5)


@pytest.mark.parametrize("share", [0, 1, 350, 699])
def test_nearest_of_the_parts_are_nearest_of_the_whole(share):
    """The K nearest of a cloud are the K nearest among those of its two parts."""
    positions, _, valid = cloud()
    ndc = project(positions, path()[0], H, W, CONFIG)
    whole = rasterize(ndc, valid, H, W, CONFIG)
    first = rasterize(ndc[:share], valid[:share], H, W, CONFIG)
    second = rasterize(ndc[share:], valid[share:], H, W, CONFIG)
    both = np.concatenate([first.indices, np.where(second.indices >= 0, second.indices + share, -1)], axis=-1)
    depth = np.where(both >= 0, np.concatenate([first.depth, second.depth], axis=-1), np.inf)
    order = np.lexsort((both, depth), axis=-1)[..., : CONFIG.points_per_pixel]
    np.testing.assert_array_equal(whole.indices, np.take_along_axis(both, order, axis=-1))


@pytest.mark.slow
def test_world_and_camera_turned_together_show_the_same():
    positions, colors, valid = cloud()
    axis = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])
    cross = np.cross(np.eye(3), axis)
    turn = jnp.asarray(np.eye(3) + np.sin(1.1) * cross + (1 - np.cos(1.1)) * cross @ cross, jnp.float32)
    shift = jnp.array([0.4, -0.2, 0.1])
    moved = jnp.einsum("ij,nj->ni", turn, positions, precision="highest") + shift
    cameras = path()
    rotation = jnp.einsum("vij,kj->vik", cameras.cam_from_world[:, :, :3], turn, precision="highest")
    translation = cameras.cam_from_world[:, :, 3] - jnp.einsum("vij,j->vi", rotation, shift, precision="highest")
    turned = Cameras(jnp.concatenate([rotation, translation[..., None]], axis=-1), cameras.intrinsics)
    a, b = picture(positions, colors, valid), picture(moved, colors, valid, turned)
    # A disc's rim can pass over a pixel's centre by rounding, where its weight is nothing: the blend hardly moves.
    assert_same(a.color, b.color, atol=2e-4)
    assert_same(a.coverage, b.coverage, atol=2e-4)


def test_jit_batch_and_chunks_change_nothing():
    points = cloud()
    both = picture(*points)
    with jax.disable_jit():
        assert_same(both, picture(*points), atol=2e-5)  # the projection is not fused
    for view in range(2):
        alone = picture(*points, path()[view : view + 1])
        assert_same(jax.tree.map(lambda leaf, view=view: leaf[view : view + 1], both), alone)
    assert_same(both, picture(*points, config=dataclasses.replace(CONFIG, views_at_once=2)))


@pytest.mark.parametrize("algorithm", ["auto", "stencil"])
def test_metric_discs_shrink_with_depth(algorithm):
    """Radius 0.1 at depth 2 is half of what it is at depth 1, unless a limit holds."""
    config = SplatConfig(radius=0.5, metric_radius=0.1, points_per_pixel=2, algorithm=algorithm)
    camera = path()[0]
    depth = jnp.array([1.0, 2.0, 0.05, 500.0])
    radius2 = disc_radius2(depth, camera, H, W, config)
    focal = 0.9 * W * 2 / H  # NDC per unit of x / z
    np.testing.assert_allclose(radius2[:2], [(0.1 * focal) ** 2, (0.05 * focal) ** 2], rtol=1e-5)
    np.testing.assert_allclose(radius2[2:], [0.5**2, (0.75 * 2 / H) ** 2], rtol=1e-5)
    for z, area in ((1.0, np.pi * (0.1 * 0.9 * W) ** 2), (2.0, np.pi * (0.05 * 0.9 * W) ** 2)):
        seen = picture(jnp.array([[0.0, 0.0, z]]), jnp.ones((1, 1)), jnp.ones(1, bool), config=config)
        assert abs(int((~seen.holes[0]).sum()) / area - 1) < 0.25


def test_broken_points_are_left_out_and_counted():
    positions, _, valid = cloud()
    broken = positions.at[:7].set(jnp.nan).at[7, 2].set(jnp.inf)
    fragments = rasterize(project(broken, path()[0], H, W, CONFIG), valid, H, W, CONFIG)
    assert int(fragments.ignored) == int(valid[:8].sum())
    assert not np.isin(np.arange(8), fragments.indices).any()
    assert bool(fragments.certified.all())


@pytest.mark.parametrize("metric_radius", [None, 0.08])
@pytest.mark.slow
def test_the_backward_passes_are_those_of_autodiff(metric_radius):
    """By hand in numba, by hand in XLA, and autodiff through the plain blend: all gradients, of all outputs."""
    points = cloud(300)
    positions, colors, valid = points
    probe = jax.random.normal(jax.random.key(1), (5, H, W))
    config = SplatConfig(radius=0.15, points_per_pixel=6, metric_radius=metric_radius)

    def loss(positions, colors, pose, draw):
        cameras = Cameras(pose, path().intrinsics[:1])
        color, coverage, depth = draw(positions, colors, cameras)
        return (color * jnp.moveaxis(probe[:3], 0, -1)).sum() + (coverage * probe[3]).sum() + (depth * probe[4]).sum()

    def with_render(algorithm):
        def draw(positions, colors, cameras):
            chosen = dataclasses.replace(config, algorithm=algorithm)
            seen = picture(positions, colors, valid, cameras, chosen)
            return seen.color[0], seen.coverage[0], seen.depth[0]

        return draw

    def plain(positions, colors, cameras):
        ndc = project(positions, cameras[0], H, W, config)
        radius2 = disc_radius2(ndc[:, 2], cameras[0], H, W, config)
        fragments = rasterize(ndc, valid, H, W, config, radius2)
        return *shade(fragments, colors), jnp.maximum(fragments.depth[..., 0], 0)

    def gradients(draw):
        return jax.jit(jax.grad(lambda *leaves: loss(*leaves, draw), (0, 1, 2)))(
            positions, colors, path().cam_from_world[:1]
        )

    expected = gradients(plain)
    assert all(float(jnp.abs(leaf).max()) > 0.1 for leaf in expected)
    for algorithm in ("auto", "stencil"):
        for leaf, other in zip(expected, gradients(with_render(algorithm)), strict=True):
            np.testing.assert_allclose(leaf, other, atol=1e-5 * float(jnp.abs(leaf).max()) + 1e-6, rtol=2e-3)

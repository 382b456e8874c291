"""Projection, blending and gradients of the point renderer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.splat import SplatConfig, project, render

H, W = 24, 40


def view(cx=0.5, cy=0.5, shift=(0.0, 0.0, 0.0), f=0.9) -> Cameras:
    """A path of one view."""
    pose = jnp.concatenate([jnp.eye(3), jnp.asarray(shift)[:, None]], axis=1)
    return Cameras(pose[None], jnp.array([[f, f * W / H, cx, cy]], jnp.float32))


def cloud(n=400, seed=0):
    rng = np.random.default_rng(seed)
    positions = rng.uniform([-1.5, -1.0, 1.0], [1.5, 1.0, 3.0], (n, 3)).astype(np.float32)
    return jnp.asarray(positions), jnp.asarray(rng.uniform(0, 1, (n, 3)), jnp.float32), jnp.ones(n, bool)


def test_correct_convention_lands_on_the_pixel_that_cameras_project_to():
    camera = view(cx=0.43, cy=0.61, shift=(0.1, -0.2, 0.3))[0]
    positions = cloud()[0]
    ndc = project(positions, camera, H, W, SplatConfig())
    uv, depth = camera.project(positions, H, W)
    u = (W - 1) / 2 - ndc[:, 0] * min(H, W) / 2
    v = (H - 1) / 2 - ndc[:, 1] * min(H, W) / 2
    np.testing.assert_allclose(jnp.stack([u, v], -1), uv, atol=1e-4)
    np.testing.assert_allclose(ndc[:, 2], depth, rtol=1e-6)


def test_release_convention_mirrors_the_principal_point_and_scales_by_s_minus_one():
    """The formula of spec/splat.md R1 in float64."""
    camera, positions = view(cx=0.43, cy=0.61, shift=(0.1, -0.2, 0.3))[0], cloud()[0]
    ndc = project(positions, camera, H, W, SplatConfig(convention="release"))
    p = np.asarray(positions, np.float64) + np.array([0.1, -0.2, 0.3])
    fx, fy, cx, cy = np.asarray(camera.intrinsics, np.float64) * [W, H, W, H]
    scale = 2 / (min(H, W) - 1)
    x = -scale * fx * p[:, 0] / p[:, 2] + (cx - (W - 1) / 2) * scale
    y = -scale * fy * p[:, 1] / p[:, 2] + (cy - (H - 1) / 2) * scale
    np.testing.assert_allclose(ndc, np.stack([x, y, p[:, 2]], -1), atol=2e-6)


def test_one_point_on_a_pixel_centre_fills_it_and_fades_with_distance():
    config = SplatConfig(radius=3.0 / H)  # 1.5 pixels
    camera = view()
    position = camera.unproject(jnp.full((1, H, W), 2.0))[0, 10, 15]
    projection = render(position[None], jnp.array([[0.2, 0.4, 0.8]]), jnp.ones(1, bool), camera,
                        height=H, width=W, config=config)  # fmt: skip
    expected = np.zeros((H, W))
    expected[9:12, 14:17] = 1 - np.array([[2, 1, 2], [1, 0, 1], [2, 1, 2]]) / 1.5**2
    np.testing.assert_allclose(projection.coverage[0], expected, atol=1e-4)
    np.testing.assert_allclose(projection.color[0], expected[..., None] * [0.2, 0.4, 0.8], atol=1e-4)
    np.testing.assert_allclose(projection.depth[0], np.where(expected > 0, 2.0, 0.0), atol=1e-6)
    np.testing.assert_array_equal(projection.holes[0], expected == 0)


def test_nearer_point_hides_farther_one():
    positions = jnp.array([[0.0, 0.0, 3.0], [0.0, 0.0, 2.0]]) + jnp.array([1e-6, 1e-6, 0.0])
    camera = view(cx=0.5 + 0.5 / W, cy=0.5 + 0.5 / H)  # the axis meets a pixel centre
    projection = render(positions, jnp.eye(2), jnp.ones(2, bool), camera, height=H, width=W, config=SplatConfig(0.1))
    row, column = H // 2, W // 2
    np.testing.assert_allclose(projection.color[0, row, column], [0.0, 1.0], atol=1e-4)
    assert abs(float(projection.depth[0, row, column]) - 2.0) < 1e-6


def test_coverage_is_what_features_of_one_render_to():
    positions, colors, valid = cloud()
    features = jnp.concatenate([colors, jnp.ones((len(colors), 1))], axis=-1)
    projection = render(positions, features, valid, view(), height=H, width=W, config=SplatConfig(0.08))
    np.testing.assert_allclose(projection.color[..., 3], projection.coverage, atol=2e-6)
    assert float(projection.coverage.min()) >= 0.0
    assert float(projection.coverage.max()) <= 1.0
    assert float((projection.coverage > 0).mean()) > 0.3


def test_points_behind_or_broken_or_invalid_change_nothing():
    positions, colors, valid = cloud()
    config = SplatConfig(0.08)
    clean = render(positions, colors, valid, view(), height=H, width=W, config=config)
    bad = jnp.array([[0, 0, -1], [0.1, 0, 0], [0, 0, 0], [jnp.nan, 0, 2], [0, jnp.inf, 2], [0, 0, 1.0]], jnp.float32)
    more = render(
        jnp.concatenate([positions, bad]), jnp.concatenate([colors, jnp.full((6, 3), jnp.nan)]),
        jnp.concatenate([valid, jnp.array([True] * 5 + [False])]), view(), height=H, width=W, config=config,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, clean, more)


def test_empty_map_is_all_holes():
    projection = render(jnp.zeros((5, 3)), jnp.ones((5, 3)), jnp.zeros(5, bool), view(), height=H, width=W,
                        config=SplatConfig())  # fmt: skip
    nothing = render(jnp.zeros((0, 3)), jnp.ones((0, 3)), jnp.zeros(0, bool), view(), height=H, width=W,
                     config=SplatConfig())  # fmt: skip
    assert bool(projection.holes.all())
    assert not np.any(projection.color)
    jax.tree.map(np.testing.assert_array_equal, projection, nothing)


@pytest.mark.parametrize("algorithm", ["auto", "peel", "stencil"])
def test_gradients_of_positions_features_and_camera(algorithm):
    """With room for all hits in the list the image is differentiable but at the discs' rims, which do not jump."""
    positions, colors, valid = cloud(n=12, seed=3)
    config = SplatConfig(radius=0.25, points_per_pixel=12, algorithm=algorithm)
    probe = jax.random.normal(jax.random.key(0), (1, H, W, 3))

    def loss(positions, colors, pose, intrinsics):
        projection = render(positions, colors, valid, Cameras(pose, intrinsics), height=H, width=W, config=config)
        return (projection.color * probe).sum() + (projection.coverage * probe[..., 0]).sum()

    camera = view(f=0.7)
    check_grads(
        loss, (positions, colors, camera.cam_from_world, camera.intrinsics), order=1, modes=["rev"],
        eps=3e-4, atol=0.1, rtol=0.05,
    )  # fmt: skip


def test_gradients_stay_finite_beside_broken_points():
    positions, colors, valid = cloud(n=20)
    positions = positions.at[0].set(jnp.nan).at[1].set(0.0).at[2, 2].set(-1.0).at[3].set(jnp.inf)

    def loss(positions, colors, camera):
        projection = render(positions, colors, valid, camera, height=H, width=W, config=SplatConfig(0.2))
        return projection.color.sum() + projection.depth.sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))(positions, colors, view())
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients[2].cam_from_world).max()) > 0


def test_views_do_not_influence_each_other():
    positions, colors, valid = cloud()
    pair = Cameras.concatenate([view(), view(shift=(0.3, 0.0, 0.1))])
    together = render(positions, colors, valid, pair, height=H, width=W, config=SplatConfig(0.05))
    alone = render(positions, colors, valid, pair[1:], height=H, width=W, config=SplatConfig(0.05))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), together, alone)
    assert float(jnp.abs(together.color[0] - together.color[1]).max()) > 0.1


@pytest.mark.parametrize(
    "arguments", [{"radius": 0.0}, {"points_per_pixel": 0}, {"convention": "official"}, {"algorithm": "fast"}]
)
def test_bad_settings_are_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        SplatConfig(**arguments)


def test_arrays_of_different_length_are_refused():
    positions, colors, valid = cloud()
    with pytest.raises(InputError, match="one entry per point"):
        render(positions, colors[1:], valid, view(), height=H, width=W, config=SplatConfig())

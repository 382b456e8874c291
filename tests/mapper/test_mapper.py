"""Mapper, first form, on a synthetic room (floor, back wall, box) whose depth is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper import MapperConfig, alignment, filters, keyframe_numbers, select_points, update

T, H, W = 6, 48, 64
CONFIG = MapperConfig(neighbors=(-1, 1))
NO_MASK = np.zeros((T, H, W), bool)
_update = jax.jit(update, static_argnums=0)
select = jax.jit(select_points, static_argnums=2)
agreement = jax.jit(filters.view_agreement, static_argnums=(3, 4))
fit_clip = jax.jit(functools.partial(alignment.fit_clip, iterations=8, prior_share=0.002))


def run(prior, frames, cameras, map_depth, map_color, mask=NO_MASK):
    return _update(CONFIG, prior, frames, cameras, map_depth, map_color, mask[: len(prior)])


def apply(fit, depth):
    return depth / (np.asarray(fit.scale)[:, None, None] + np.asarray(fit.shift)[:, None, None] * depth)


def cameras_along_x(num_frames=T, step=0.05):
    poses = jnp.broadcast_to(jnp.eye(3, 4), (num_frames, 3, 4)).at[:, 0, 3].set(-step * jnp.arange(num_frames))
    return Cameras(poses, jnp.broadcast_to(jnp.array([0.8, 0.8 * W / H, 0.5, 0.5]), (num_frames, 4)))


@functools.cache
def room():
    """(cameras, depth [t, h, w], frames [t, h, w, 3]): a floor 1 m below, a wall 4 m ahead, a box face 2 m ahead."""
    return jax.jit(_room)()


def _room():
    cameras = cameras_along_x()
    rays, centers = cameras.rays(H, W), cameras.centers
    floor = jnp.where(rays[..., 1] > 0, 1 / jnp.maximum(rays[..., 1], 1e-6), jnp.inf)
    on_box = centers[:, None, None] + 2 * rays
    box = jnp.where((jnp.abs(on_box[..., 0]) < 0.5) & (jnp.abs(on_box[..., 1]) < 0.4), 2.0, jnp.inf)
    depth = jnp.minimum(jnp.minimum(floor, 4.0), box)
    return cameras, depth, 0.5 + 0.3 * jnp.sin(3 * cameras.unproject(depth))


def distort(depth, scale, shift):
    """A prior that alignment with (scale, shift) turns into `depth`."""
    return (scale / (1 / depth - shift)).astype(np.float32)


def half_covered(depth):
    return jnp.where(jnp.arange(W) < W // 2, depth, 0.0)


def with_outliers(depth):
    wrong, factor = np.random.default_rng(0).uniform(size=(2, *depth.shape))
    return np.where(wrong < 0.3, depth * (1.3 + 2 * factor), depth).astype(np.float32)


def test_alignment_recovers_scale_and_shift_despite_outliers():
    _, depth, _ = room()
    prior = distort(depth, 0.7, -0.04)
    fit = fit_clip(prior, with_outliers(depth), depth > 0)
    np.testing.assert_allclose(fit.scale, 0.7, rtol=0.01)
    np.testing.assert_allclose(fit.shift, -0.04, atol=0.004)


def test_alignment_follows_a_scale_that_drifts_through_the_clip():
    _, depth, _ = room()
    prior = distort(depth, np.linspace(0.6, 0.75, T)[:, None, None], -0.04)
    error = apply(fit_clip(prior, with_outliers(depth), depth > 0), prior) / depth - 1
    assert np.abs(error).mean() < 0.01
    assert np.abs(error).max() < 0.05


def test_frame_without_overlap_follows_its_clip():
    _, depth, _ = room()
    prior = distort(depth, 1.5, 0.02)
    valid = jnp.ones(depth.shape, bool).at[2].set(False)
    fit = fit_clip(prior, depth, valid)
    np.testing.assert_allclose(fit.scale, 1.5, rtol=0.03)


def test_the_median_found_bit_by_bit_is_that_of_a_sort():
    random = np.random.default_rng(0)
    values, mask = random.normal(size=(7, 501)).astype(np.float32), random.random((7, 501)) < 0.6
    values[:, ::5] = values[:, :1]
    values[0, 0], values[1, 1] = np.inf, -np.inf
    mask[2] = False
    found = jax.vmap(alignment.masked_median)(jnp.asarray(values), jnp.asarray(mask))
    for median, row, counts in zip(found, values, mask, strict=True):
        assert median == (np.sort(row[counts])[(counts.sum() - 1) // 2] if counts.any() else 0)


def test_flat_wall_defines_scale_though_not_shift():
    wall = np.full((T, H, W), 3.0, np.float32)
    fit = fit_clip(wall / 2, wall, wall > 0)
    np.testing.assert_allclose(apply(fit, wall / 2), wall, rtol=0.01)


def test_new_geometry_joins_the_map_without_a_step():
    cameras, depth, frames = room()
    bent = depth * (1 + 0.12 * jnp.sin(jnp.arange(H) / 9.0))[:, None]  # what no scale and shift explain
    map_depth = half_covered(depth)
    mapped = run(0.7 * bent, frames, cameras, map_depth, frames)
    columns = slice(W // 2, W // 2 + 3)
    seam = np.abs(np.log(mapped.depth / depth))[:, :, columns]
    uncorrected = np.abs(np.log(bent / depth))[:, :, columns]
    assert np.median(seam) < 0.25 * np.median(uncorrected)
    np.testing.assert_array_equal(mapped.depth[:, :, : W // 4], depth[:, :, : W // 4])


def test_exact_depth_fills_the_map_almost_everywhere():
    cameras, depth, frames = room()
    mapped = run(0.5 * depth, frames, cameras, half_covered(depth), frames)
    np.testing.assert_allclose(mapped.depth, depth, rtol=0.02)
    assert mapped.static.mean() > 0.85
    assert not np.any(mapped.moving)
    np.testing.assert_allclose(mapped.report["scale"], 0.5, rtol=0.02)
    assert mapped.report["inlier_share"] > 0.99


def test_moving_patch_is_found_by_its_residuals():
    cameras, depth, frames = room()
    patch = jnp.zeros((T, H, W), bool)
    for t in range(T):
        patch = patch.at[t, 8:20, 8 + 4 * t : 20 + 4 * t].set(True)
    prior = jnp.where(patch, 1.2, depth)
    seen = jnp.where(patch[..., None], jnp.array([1.0, 0.1, 0.1]), frames)
    mapped = run(prior, seen, cameras, depth, frames)
    overlap = (mapped.moving & patch).sum() / (mapped.moving | patch).sum()
    assert overlap > 0.8
    assert not np.any(mapped.weight[patch] > 0)


def test_change_of_light_alone_does_not_move():
    cameras, depth, frames = room()
    mapped = run(depth, frames * 0.8, cameras, depth, frames)
    assert not np.any(mapped.moving)


def test_given_mask_never_enters_the_map():
    cameras, depth, frames = room()
    mask = jnp.zeros((T, H, W), bool).at[:, 10:20, 30:50].set(True)
    mapped = run(depth, frames, cameras, half_covered(depth), frames, mask)
    assert np.all(mapped.moving[mask])
    assert not np.any(mapped.static[mask])


def test_views_that_disagree_drop_the_pixel():
    cameras, depth, _ = room()
    patch = (slice(3, 4), slice(5, 12), slice(20, 30))
    broken = depth.at[patch].multiply(0.7)  # one frame imagines something nearer
    valid = jnp.ones(depth.shape, bool)
    agreements, inside = agreement(broken, valid, cameras, (-1, 1), 0.05)
    assert np.all(agreements[patch] == 0)
    assert np.all(inside[patch] == 2)
    untouched = agreements[1, :, 8:-8]
    assert (untouched > 0).mean() > 0.97


def test_depth_edges_are_jumps_and_not_slants():
    _, depth, _ = room()
    edges = filters.depth_edges(depth, 0.1)
    box = np.isclose(depth, 2.0)
    border = box & ~(np.roll(box, 1, 2) & np.roll(box, -1, 2)) & (np.abs(depth - 2.0) < 1e-6)
    assert edges[border].mean() > 0.9
    assert not np.any(edges[:, -6:])  # the floor, seen at a grazing angle


@pytest.mark.parametrize("case", ["no overlap", "all masked", "all NaN", "map NaN", "frames NaN", "zero depth", "huge"])
def test_degenerate_input_is_defined(case):
    cameras, depth, frames = room()
    prior, map_depth, mask = depth, half_covered(depth), jnp.zeros((T, H, W), bool)
    match case:
        case "no overlap":
            map_depth = jnp.zeros_like(depth)
        case "all masked":
            mask = ~mask
        case "all NaN":
            prior, map_depth = jnp.full_like(depth, jnp.nan), jnp.zeros_like(depth)
        case "map NaN":
            map_depth = jnp.full_like(depth, jnp.nan)
        case "frames NaN":
            frames = jnp.full_like(frames, jnp.nan)
        case "zero depth":
            prior, map_depth = jnp.zeros_like(depth), jnp.zeros_like(depth)
        case "huge":
            prior = depth * 1e6
    mapped = run(prior, frames, cameras, map_depth, jnp.zeros_like(frames) + 0.5, mask)
    points = select(mapped, frames, 3)
    for leaf in jax.tree.leaves((mapped, points)):
        assert np.all(np.isfinite(leaf))
    if case in ("no overlap", "map NaN"):
        np.testing.assert_allclose(mapped.depth, depth, rtol=1e-5)
        assert mapped.static.mean() > 0.8
    elif case in ("all masked", "all NaN", "frames NaN", "zero depth"):
        assert not np.any(mapped.static)
        assert not np.any(points[3])


def test_clip_of_one_frame_and_a_camera_that_stands_still():
    cameras, depth, frames = room()
    one = run(depth[:1], frames[:1], cameras[:1], depth[:1], frames[:1])
    assert one.static.mean() > 0.8
    still = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), (cameras, depth, frames))
    mapped = run(still[1], still[2], still[0], jnp.zeros_like(depth), still[2])
    assert mapped.static.mean() > 0.8


def test_selected_points_lie_on_the_scene():
    cameras, depth, frames = room()
    mapped = run(depth, frames, cameras, jnp.zeros_like(depth), frames)
    positions, colors, weights, valid, brought_by = select(mapped, frames, 3)
    assert positions.shape == (T * 16 * 21, 3)
    assert set(np.unique(brought_by)) == set(range(T))
    x, y, z = positions[valid].T
    on_floor, on_wall = np.abs(y - 1) < 1e-3, np.abs(z - 4) < 1e-3
    on_box = (np.abs(z - 2) < 1e-3) & (np.abs(x) < 0.51)
    assert np.all(on_floor | on_wall | on_box)
    np.testing.assert_allclose(colors, 0.5 + 0.3 * jnp.sin(3 * positions), atol=1e-4)
    assert np.all((weights > 0) == valid)


def test_keyframes_are_counted_back_from_the_last_frame():
    assert keyframe_numbers(6, 2) == (1, 3, 5)
    assert keyframe_numbers(17, 4) == (0, 4, 8, 12, 16)
    assert keyframe_numbers(1, 4) == (0,)


def test_config_refuses_what_cannot_work():
    with pytest.raises(InputError, match="confirm itself"):
        MapperConfig(neighbors=(0, 1))
    with pytest.raises(InputError, match="must be odd"):
        MapperConfig(motion_window=4)


def test_points_before_what_a_view_saw_are_found():
    cameras, depth, _ = room()
    views, seen = cameras[:2], depth[:2].at[:, :, : W // 4].set(0.0)
    surface = cameras.unproject(depth)[0, 4:-4, W // 2 : -8].reshape(-1, 3)
    blocks = jax.jit(lambda points, tolerance: filters.blocks_views(points, views, seen, tolerance))
    assert not blocks(surface, tolerance=0.15).any()
    nearer = views[0].centers + 0.6 * (surface - views[0].centers)
    assert blocks(nearer, tolerance=0.15).all()
    behind = views[0].centers + 1.5 * (surface - views[0].centers)
    assert not blocks(behind, tolerance=0.15).any()
    assert not blocks(-surface, tolerance=0.15).any()  # behind the cameras
    unknown = views[0].centers + 0.6 * (cameras.unproject(depth)[0, 8:-8, : W // 8].reshape(-1, 3) - views[0].centers)
    assert not blocks(unknown, tolerance=0.15).any()

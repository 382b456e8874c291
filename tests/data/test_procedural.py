"""The procedural world is a ground truth, so it has to be exact: depth, motion masks, paths that touch nothing."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from spatia_jax.data.procedural import KINDS, VOCABULARY, caption, clearance, render, sample_path, sample_scene
from spatia_jax.errors import InputError

HEIGHT, WIDTH = 64, 112
SEEDS = (0, 2, 5, 11)


@pytest.fixture(scope="module", params=SEEDS)
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def scene(seed):
    return sample_scene(seed)


def _see(scene, cameras, times):
    seen = render(scene, cameras, jnp.asarray(times, jnp.float32), HEIGHT, WIDTH)
    return SimpleNamespace(**{name: np.asarray(value) for name, value in vars(seen).items()})


def test_same_seed_same_world(scene, seed):
    again, other = sample_scene(seed), sample_scene(seed + 1)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(scene), jax.tree.leaves(again), strict=True))
    assert not np.array_equal(scene.centre, other.centre)
    first, second = sample_path(3, scene, 9, "wander"), sample_path(3, again, 9, "wander")
    np.testing.assert_array_equal(first.cam_from_world, second.cam_from_world)
    seen, seen_again = _see(scene, first[:3], [0.0, 0.5, 1.0]), _see(again, second[:3], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(seen.color, seen_again.color)


def test_depth_warps_one_view_into_another(scene, seed):
    """Points unprojected from view 0 land in view 1 where its own depth and colour say the same."""
    cameras = sample_path(seed, scene, 13, "wander")[jnp.array([0, 12, 12])]
    seen = _see(scene, cameras, np.zeros(3))
    points = np.asarray(cameras[0].unproject(jnp.asarray(seen.depth[0]))).reshape(-1, 3)
    uv, depth = (np.asarray(a) for a in cameras[1].project(jnp.asarray(points), HEIGHT, WIDTH))
    u, v = uv.T
    inside = (depth > 0.1) & (u > 1) & (u < WIDTH - 2) & (v > 1) & (v < HEIGHT - 2)
    assert inside.mean() > 0.2
    there = map_coordinates(seen.depth[1], [v, u], order=1)
    visible = inside & (np.abs(there / np.maximum(depth, 1e-6) - 1) < 0.02)
    assert visible.sum() > 0.75 * inside.sum()
    # Depth is exact where it is smooth; bilinear sampling of 1/z on planes leaves only rounding.
    inverse = map_coordinates(1 / seen.depth[1], [v, u], order=1)
    assert np.median(np.abs(inverse * depth - 1)[visible]) < 1e-4
    color = np.stack([map_coordinates(seen.color[1, ..., c].astype(float), [v, u], order=1) for c in range(3)], -1)
    error = np.abs(color - seen.color[0].reshape(-1, 3)).mean(-1)
    assert np.median(error[visible]) < 5.0  # of 255
    shifted = np.abs(np.roll(seen.color[1], 9, axis=1).reshape(-1, 3) - color).mean(-1)
    assert np.median(error[visible]) < np.median(shifted[visible])


def test_moving_mask_is_what_moves():
    """From a still camera: the mask is the movers' pixels, depth changes there and nowhere else."""
    checked = 0
    for seed in range(20):
        scene = sample_scene(seed)
        moves = np.asarray(scene.moves)
        cameras = sample_path(seed, scene, 1, "pan")[jnp.zeros(3, int)]
        seen = _see(scene, cameras, [0.0, 0.5, 1.0])
        movers = set(np.asarray(scene.instance)[moves].tolist())
        np.testing.assert_array_equal(seen.moving, np.isin(seen.instance, list(movers)))
        changed = seen.depth[0] != seen.depth[2]
        assert not (changed & ~seen.moving[0] & ~seen.moving[2]).any()
        if seen.moving[0].sum() > 40:
            assert changed[seen.moving[0]].mean() > 0.2
            checked += 1
    assert checked >= 3


def test_rendering_is_usable_everywhere(scene, seed):
    cameras = sample_path(seed, scene, 3, "pan")
    seen = _see(scene, cameras, np.arange(3) / 12)
    assert np.isfinite(seen.depth).all()
    assert seen.depth.min() > 0.2
    assert seen.depth.max() < 40.0
    assert seen.color.std() > 10  # neither black nor washed out
    assert 20 < seen.color.mean() < 235


@pytest.mark.parametrize("kind", KINDS)
def test_paths_touch_nothing(scene, seed, kind):
    cameras = sample_path(seed, scene, 65, kind)
    assert clearance(scene, np.asarray(cameras.centers)).min() >= 0.349
    rotation = np.asarray(cameras.cam_from_world)[:, :, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(3), (65, 3, 3)), atol=1e-5)
    steps = np.linalg.norm(np.diff(np.asarray(cameras.centers), axis=0), axis=-1)
    turns = np.arccos(np.clip((np.einsum("tij,tij->t", rotation[1:], rotation[:-1]) - 1) / 2, -1, 1))
    assert steps.max() < 0.12
    assert turns.max() < np.radians(6)
    fields = 2 * np.degrees(np.arctan(0.5 / np.asarray(cameras.intrinsics)[:, 0]))
    assert ((fields >= 55) & (fields <= 75)).all()


def test_clearance_agrees_with_what_is_seen(scene, seed):
    """No surface in sight is nearer than the clearance of the place one stands on (movers keep theirs in reserve)."""
    cameras = sample_path(seed, scene, 33, "wander")[::16]
    seen = _see(scene, cameras, np.zeros(3))
    ray = np.linalg.norm(np.asarray(cameras.rays(HEIGHT, WIDTH)), axis=-1)
    nearest = (seen.depth * ray).min((1, 2))
    assert (nearest >= clearance(scene, np.asarray(cameras.centers)) - 1e-3).all()


@pytest.mark.parametrize("num_frames", [64, 65])
def test_there_and_back_returns_exactly(scene, seed, num_frames):
    cameras = sample_path(seed, scene, num_frames, "there_and_back")
    np.testing.assert_array_equal(cameras.cam_from_world, cameras.cam_from_world[::-1])
    centers = np.asarray(cameras.centers)
    forward = np.asarray(cameras.cam_from_world)[:, 2, :3]
    went = np.linalg.norm(centers - centers[0], axis=-1).max()
    turned = np.degrees(np.arccos(np.clip(forward @ forward[0], -1, 1)).max())
    assert went > 0.3 or turned > 20


def test_captions_use_the_vocabulary():
    captions = [caption(sample_scene(seed)) for seed in range(24)]
    assert len(set(captions)) > 20
    assert any("while" in text for text in captions)
    for text in captions:
        assert set(text.replace(",", " ,").split()) <= set(VOCABULARY)


def test_unknown_kind_is_named(scene):
    with pytest.raises(InputError, match="there_and_back"):
        sample_path(0, scene, 5, "zigzag")

"""What is found where nothing is given, against the truth of the procedural world."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.data.procedural import render, sample_path, sample_scene
from spatia_jax.data.videos.geometry import (
    STEP,
    GeometryConfig,
    enlarge,
    find_moving,
    frame_overlap,
    grid_of,
    triangulate,
)

CONFIG = GeometryConfig(rows=16, window=9)


@pytest.mark.parametrize(
    ("size", "grid"), [((128, 224), (24, 42)), ((704, 1248), (22, 39)), ((32, 64), (24, 48)), ((480, 832), (30, 52))]
)
def test_the_grid_has_the_proportions_of_the_clip(size, grid):
    assert grid_of(*size, 24) == grid


def orbit(frames: int = 9) -> tuple:
    rows, columns = grid_of(128, 224, CONFIG.rows)
    scene = sample_scene(7)
    cameras = sample_path(7, scene, frames, "orbit")
    return cameras, render(scene, cameras, jnp.zeros(frames), rows * STEP, columns * STEP)


@pytest.mark.slow
def test_depth_of_posed_frames_is_found():
    """In the unit of the poses: twice the poses, twice the depth."""
    cameras, seen = orbit()
    depth = triangulate(CONFIG, np.asarray(seen.color), cameras)
    truth = np.asarray(seen.depth)[:, STEP // 2 :: STEP, STEP // 2 :: STEP]
    known = depth > 0
    error = np.abs(depth / truth - 1)[known]
    assert known.mean() > 0.5
    assert np.median(error) < 0.03
    assert (error < 0.1).mean() > 0.85
    moving = find_moving(CONFIG, np.asarray(seen.color), depth, cameras)
    assert (moving & ~np.asarray(seen.moving)).mean() < 0.02
    larger = replace(cameras, cam_from_world=cameras.cam_from_world * jnp.array([1, 1, 1, 2.0]))
    again = triangulate(CONFIG, np.asarray(seen.color), larger)
    both = known & (again > 0)
    np.testing.assert_allclose(np.median(again[both] / depth[both]), 2, rtol=1e-2)


@pytest.mark.slow
def test_a_camera_that_only_turns_finds_no_depth():
    cameras, seen = orbit()
    still = Cameras(jnp.broadcast_to(cameras.cam_from_world[:1], (9, 3, 4)), cameras.intrinsics)
    assert (triangulate(CONFIG, np.asarray(seen.color), still) > 0).mean() < 0.02


def test_enlarged_depth_is_a_plane_where_it_was_one_and_unknown_around_the_unknown():
    x = np.arange(8)
    inverse = np.broadcast_to(0.2 + 0.01 * x, (1, 6, 8))
    depth = (1 / inverse).astype(np.float32)
    depth[0, 2, 3] = 0
    large = np.asarray(enlarge(jnp.asarray(depth), (24, 32)))[0]
    known = large > 0
    assert not known[8:12, 12:16].any()
    assert known[:, 20:].all()
    expected = 0.2 + 0.01 * ((np.arange(32) + 0.5) / 4 - 0.5)
    np.testing.assert_allclose(1 / large[20, 4:28], expected[4:28], rtol=1e-4)


def test_overlap_is_of_voxels_that_both_see():
    """Two cameras side by side before a wall at 2 m, 2 m wide in view: shifted by half of it they share a third."""
    count, height, width = 3, 40, 40
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (count, 1, 1))
    poses[1, 0, 3] = -1.0  # one metre to the right
    poses[2, :, :3] = np.diag([-1, 1, -1])  # looks away
    cameras = Cameras(jnp.asarray(poses), jnp.tile(jnp.array([1.0, 1.0, 0.5, 0.5]), (count, 1)))
    depth, static = np.full((count, height, width), 2.0, np.float32), np.ones((count, height, width), bool)
    overlap = frame_overlap(depth, static, cameras, 0.1, 1600)
    np.testing.assert_allclose(np.diag(overlap), 1)
    assert abs(overlap[0, 1] - 1 / 3) < 0.03
    assert overlap[0, 2] == overlap[1, 2] == 0
    np.testing.assert_array_equal(overlap, overlap.T)
    static[1] = False
    assert (frame_overlap(depth, static, cameras, 0.1, 1600)[1] == 0).all()  # nothing of it is in the map

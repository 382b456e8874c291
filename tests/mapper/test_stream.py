"""A sequence mapped frame by frame, whole: a path there and back, with matches that drift in the direction of time.

The matcher of these tests knows the truth: each image shows the number of its frame (red), and whether anything is seen
of frames far from it (green). So both runs, with loops and without, share their compiled programs.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.mapper.reprojection import pixel_grid, warp
from spatia_jax.mapper.stream import MappedSequence, map_stream
from spatia_jax.mapper.stream_steps import StreamConfig

ROWS, COLUMNS, NUM_FRAMES = 12, 16, 21
INTRINSICS = np.array([0.9, 1.2, 0.5, 0.5], np.float32)


def _surface(x, y):
    """z of a bumpy wall."""
    return 3 + 0.3 * np.sin(2 * x) + 0.3 * np.cos(3 * y + x)


@functools.cache
def truth() -> tuple[Cameras, np.ndarray]:
    """Cameras there and back, 10 cm a frame and turning a little, and their inverse depth of the wall."""
    away = NUM_FRAMES // 2 - np.abs(np.arange(NUM_FRAMES) - NUM_FRAMES // 2)
    xi = np.zeros((NUM_FRAMES, 6), np.float32)
    xi[:, 0], xi[:, 2], xi[:, 4] = -0.08 * away, -0.06 * away, 0.01 * away
    cameras = Cameras.from_se3(jaxlie.SE3.exp(jnp.asarray(xi)), jnp.asarray(INTRINSICS))
    rays = np.asarray(cameras.rays(ROWS, COLUMNS), np.float64)
    centers = np.asarray(cameras.centers, np.float64)[:, None, None]
    depth = np.full(rays.shape[:3], 3.0)
    for _ in range(50):  # the wall is flat enough for fixed points
        point = centers + depth[..., None] * rays
        depth += 0.5 * (_surface(point[..., 0], point[..., 1]) - point[..., 2]) / rays[..., 2]
    return cameras, (1 / depth).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DriftingMatcher:
    """Exact matches of frames far apart; those of neighbours `drift_px` a frame too high, in the direction of time."""

    drift_px: float = 0.1
    reach: int = 2

    def __call__(self, images, pairs, grid, start=None):
        numbers, far = jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32), images[0, 0, 0, 1] > 0.5
        cameras, inverse_depth = truth()
        poses, lenses = cameras.as_se3().wxyz_xyz, cameras.pixel_intrinsics(*grid)
        pixels = pixel_grid(*grid)

        def one(i, j):
            relative = (jaxlie.SE3(poses[j]) @ jaxlie.SE3(poses[i]).inverse()).as_matrix()[:3]
            seen, ratio, _, _ = warp(relative, jnp.asarray(inverse_depth)[i].ravel(), lenses[i], lenses[j], pixels)
            (u, v), apart = seen, j - i
            inside = (ratio > 0) & (u >= 0) & (u <= grid[1] - 1) & (v >= 0) & (v <= grid[0] - 1)
            near = jnp.abs(apart) <= self.reach
            v -= jnp.where(near, self.drift_px * apart, 0.0)
            weights = jnp.broadcast_to((inside & (near | far))[:, None], (len(u), 2)).astype(jnp.float32)
            return jnp.stack([u, v], -1).reshape(*grid, 2), weights.reshape(*grid, 2)

        both = numbers[jnp.stack([pairs, pairs[:, ::-1]], axis=1)]
        return jax.vmap(jax.vmap(lambda ends: one(*ends)))(both)


CONFIG = StreamConfig(
    rows=ROWS, matcher=DriftingMatcher(), far_matcher=DriftingMatcher(), keyframes=32, pairs=128, window=5,
    offsets=(1, 2), loop_gap=6, close_every=4, points_per_cell=1, voxel_size=0.1, capacity=2**12,
)  # fmt: skip


@functools.cache
def mapped(*, loops: bool) -> MappedSequence:
    frames = np.zeros((NUM_FRAMES, 2 * ROWS, 2 * COLUMNS, 3), np.uint8)
    frames[..., 0] = np.arange(NUM_FRAMES)[:, None, None]
    frames[..., 1] = 255 * loops
    depth = np.zeros((NUM_FRAMES, ROWS, COLUMNS), np.float32)
    depth[0] = 1 / truth()[1][0]  # the scale
    return map_stream(CONFIG, frames, INTRINSICS, depth=depth)


def end_error(found: Cameras) -> tuple[float, float]:
    """Metres and degrees by which the last frame is not where the first one is."""
    apart = found[-1].as_se3() @ found[0].as_se3().inverse()
    return float(jnp.linalg.norm(apart.translation())), float(jnp.degrees(jnp.linalg.norm(apart.rotation().log())))


@pytest.mark.slow
def test_a_loop_takes_the_drift_out():
    plain, closed = mapped(loops=False), mapped(loops=True)
    assert plain.loops == []
    assert len(closed.loops) > 5
    assert closed.closures > 1
    (metres, degrees), (closed_metres, closed_degrees) = end_error(plain.cameras), end_error(closed.cameras)
    assert degrees > 2
    assert closed_degrees < 0.3 * degrees
    assert closed_metres < metres


@pytest.mark.slow
def test_points_lie_on_the_wall_when_their_keyframes_do():
    """Points went into the map before the loop was closed: they have moved with their keyframes."""

    def away(sequence: MappedSequence) -> float:
        points = np.asarray(sequence.point_map.positions)[np.asarray(sequence.point_map.valid)]
        assert len(points) > 200
        return float(np.median(np.abs(points[:, 2] - _surface(points[:, 0], points[:, 1]))))

    assert away(mapped(loops=True)) < 0.7 * away(mapped(loops=False))

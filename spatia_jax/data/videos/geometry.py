"""Cameras, depth and motion of a plain video: what the mapper finds where nothing is given.

With cameras, depth is triangulated: every frame is matched with others of its window, and bundle adjustment solves for
depth alone, all poses fixed. Without them the stand-alone mapper finds the path first. What no other view confirms is
left unknown (0), since a hole in the map is honest and a wrong point is not.

Frames come in as (rows * 8, columns * 8) pictures of the grid on which depth is solved (`grid_of`), and depth goes out
in the size that is asked for: both show the same part of the scene, so one set of normalised intrinsics serves both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper import filters
from spatia_jax.mapper.bundle_adjustment import calibrated_variance
from spatia_jax.mapper.motion import MotionConfig, moving_pixels
from spatia_jax.mapper.problem import Priors, Variables
from spatia_jax.mapper.stream import map_stream
from spatia_jax.mapper.stream_steps import StreamConfig
from spatia_jax.mapper.window import Window, WindowConfig, map_window
from spatia_jax.pyramid import pull_push

STEP = 8  # pixels of a cell
_FAR = 10.0  # times what the camera walks: depth from which the search starts


@dataclass(frozen=True)
class GeometryConfig:
    """How depth and motion are found where they are not given.

    Attributes:
        rows: of the grid on which depth is solved, about.
        window: frames that are matched with each other; offsets: how far apart.
        smooth: side, in cells, of the square over which inverse depth is averaged by its information.
        depth_sigma: relative error that the adjustment may expect of a depth.
        neighbors: offsets to the views that are asked to confirm a cell; agreements: how many have to.
        view_tolerance: relative depth within which another view does.
        edge_tolerance: curvature of inverse depth, relative to itself, from which on a cell lies on an edge.
        motion: the rule for what moves.
    """

    rows: int = 24
    window: int = 16
    offsets: tuple[int, ...] = (1, 2, 4, 8)
    smooth: int = 3
    depth_sigma: float = 0.1
    neighbors: tuple[int, ...] = (-4, -2, 2, 4)
    agreements: int = 2
    view_tolerance: float = 0.06
    edge_tolerance: float = 0.1
    motion: MotionConfig = MotionConfig()

    def __post_init__(self):
        if not 1 <= min(self.offsets) <= max(self.offsets) < self.window:
            raise InputError(f"offsets {self.offsets}, window {self.window}: expected 1 <= offsets < window")


def grid_of(height: int, width: int, rows: int) -> tuple[int, int]:
    """The grid of about `rows` rows with exactly the proportions of height x width."""
    common = math.gcd(height, width)
    down, across = height // common, width // common
    times = max(1, round(rows / down))
    return down * times, across * times


def find_cameras(
    frames: UInt8[np.ndarray, "t y x 3"],
    intrinsics: Float[np.ndarray, " 4"],
    depth: Float[np.ndarray, "t r c"] | None = None,
) -> Cameras:
    """Cameras [t] of a video without any, by the stand-alone mapper; in the unit of the depth, where that is given."""
    return map_stream(StreamConfig(rows=frames.shape[1] // STEP), frames, intrinsics, depth=depth).cameras


def triangulate(
    config: GeometryConfig, frames: UInt8[np.ndarray, "t y x 3"], cameras: Cameras
) -> Float[np.ndarray, "t r c"]:
    """z-depth of posed frames on their grid, in the unit of the poses; 0 where it is not sure."""
    size = min(config.window, len(frames))
    depth = np.zeros((len(frames), frames.shape[1] // STEP, frames.shape[2] // STEP), np.float32)
    for part in _windows(len(frames), size):
        depth[part] = _window_depth(config, frames[part], cameras[part])
    return depth


def _windows(count: int, size: int) -> list[slice]:
    """Consecutive windows of one size that cover all frames; the last one overlaps the one before."""
    starts = [*range(0, count - size, size), count - size]
    return [slice(first, first + size) for first in starts]


def _window_depth(config: GeometryConfig, frames: np.ndarray, cameras: Cameras) -> Array:
    """Sure depth [v, r, c] of a window."""
    count, grid = len(frames), (frames.shape[1] // STEP, frames.shape[2] // STEP)
    pairs = np.array([(i, i + offset) for offset in config.offsets for i in range(count - offset)], np.int32)
    centers = np.asarray(cameras.centers)
    walked = np.linalg.norm(centers - centers.mean(0), axis=-1).max()
    start = Variables.start(cameras, jnp.full((count, *grid), 1 / max(_FAR * walked, 1e-6), jnp.float32))
    priors = replace(Priors.none(start), fixed=jnp.ones(count, bool))
    window = map_window(WindowConfig(), jnp.asarray(frames, jnp.float32) / 255, pairs, start, priors)
    return _sure(config, window, priors, cameras)


@partial(jax.jit, static_argnums=0)
def _sure(config: GeometryConfig, window: Window, priors: Priors, cameras: Cameras) -> Float[Array, "v r c"]:
    """Smoothed depth that is well determined, not on an edge, and the same in other views; 0 elsewhere."""
    found = window.solution.variables
    variance, _ = calibrated_variance(window.matches, priors, found, WindowConfig().adjustment)
    information = jnp.where(jnp.isfinite(variance), 1 / jnp.maximum(variance, 1e-12), 0.0)
    seen = information > 0
    # One cell that is very sure of itself does not outvote its neighbours by more than ten to one.
    most = 10 * jnp.nanmedian(jnp.where(seen, information, jnp.nan))
    information = jnp.where(seen, jnp.minimum(information, most), 0.0)
    weighted = filters.box_mean(information * found.inverse_depth, config.smooth)
    depth = jnp.maximum(filters.box_mean(information, config.smooth), 1e-12) / jnp.maximum(weighted, 1e-12)
    sure = seen & (variance * jnp.square(depth) < config.depth_sigma**2)
    agreements, _ = filters.view_agreement(depth, sure, cameras, config.neighbors, config.view_tolerance)
    sure &= ~filters.depth_edges(depth, config.edge_tolerance) & (agreements >= config.agreements)
    return jnp.where(sure, depth, 0.0)


@partial(jax.jit, static_argnums=1)
def enlarge(depth: Float[Array, "t r c"], size: tuple[int, int]) -> Float[Array, "t h w"]:
    """From cells to pixels: inverse depth is interpolated between cells, where all that it takes is known."""
    known, shape = depth > 0, (len(depth), *size)
    inverse = jnp.where(known, 1 / jnp.where(known, depth, 1.0), 0.0)
    weight = jax.image.resize(known.astype(jnp.float32), shape, "linear")
    value = jax.image.resize(inverse, shape, "linear")
    return jnp.where(weight > 0.99, 1 / jnp.maximum(value, 1e-9), 0.0)


def find_moving(
    config: GeometryConfig,
    frames: UInt8[np.ndarray, "t y x 3"],
    depth: Float[np.ndarray, "t r c"],
    cameras: Cameras,
) -> Bool[np.ndarray, "t y x"]:
    """What moves, by the mapper's rule: pixels that no depth explains in the other views of their window.

    Every second frame judges every second frame: neighbours differ by little, and it is half the work.
    """
    size, moving = min(config.window, len(frames)), np.zeros(frames.shape[:3], bool)
    for part in _windows(len(frames), size):
        for first in range(2):
            chosen = np.arange(part.start + first, part.stop, 2)
            moving[chosen] = _moving(config, frames[chosen], depth[chosen], cameras[chosen])
    return moving


@partial(jax.jit, static_argnums=0)
def _moving(config: GeometryConfig, frames: Array, depth: Array, cameras: Cameras) -> Array:
    known = depth > 0
    inverse = jnp.where(known, 1 / jnp.where(known, depth, 1.0), 0.0)
    middle = inverse.sum() / jnp.maximum(known.sum(), 1)
    filled = pull_push(jnp.where(known, inverse - middle, 0.0), known.astype(jnp.float32), 0.01) + middle
    whole = jax.image.resize(jnp.maximum(filled, 0.1 * middle), frames.shape[:3], "linear")
    shown, nothing = frames.astype(jnp.float32) / 255, jnp.zeros(frames.shape[:3], bool)
    return moving_pixels(config.motion, shown, 1 / jnp.maximum(whole, 1e-6), cameras, shown, nothing)


def frame_overlap(
    depth: Float[np.ndarray, "t h w"], static: Bool[np.ndarray, "t h w"], cameras: Cameras, voxel: float, points: int
) -> Float[np.ndarray, "t t"]:
    """3D-IoU of what frames see: voxels that hold points of both over voxels that hold points of either (spec 1.4).

    Args:
        voxel: side, in the unit of depth; points: lifted from each frame, about.
    """
    stride = max(1, round(math.sqrt(depth.shape[1] * depth.shape[2] / points)))
    thin = (slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
    places = np.asarray(cameras.unproject(jnp.asarray(depth)))[thin]
    cells = np.floor(places / voxel).astype(np.int64)
    known = static[thin] & (depth[thin] > 0)
    frame = np.broadcast_to(np.arange(len(depth))[:, None, None], known.shape)[known]
    _, number = np.unique(cells[known], axis=0, return_inverse=True)
    held = np.zeros((len(depth), number.max(initial=-1) + 1), np.float32)
    held[frame, number.ravel()] = 1
    both, count = held @ held.T, held.sum(1)
    return (both / np.maximum(count[:, None] + count - both, 1)).astype(np.float32)

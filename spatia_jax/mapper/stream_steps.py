"""The steps of `stream.py` that run under `jit`: matching, tracking, adjusting and inserting, all of fixed shapes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Bool, Float, Int

from spatia_jax import memory
from spatia_jax.errors import InputError
from spatia_jax.mapper import filters
from spatia_jax.mapper import keyframes as graphs
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust, calibrated_variance
from spatia_jax.mapper.keyframes import KeyframeGraph
from spatia_jax.mapper.matching import Matcher, PatchMatcher
from spatia_jax.mapper.problem import Matches, Priors, Variables
from spatia_jax.mapper.reprojection import pixel_grid, warp
from spatia_jax.mapper.window import among_static, as_edges, reproject
from spatia_jax.memory.point_map import PointMap
from spatia_jax.pyramid import pull_push

_NEIGHBORS = (-2, -1, 1, 2)  # keyframes that are asked to confirm a depth
_ROWS = 48  # of the grid to whose pixels tolerances refer


@dataclass(frozen=True)
class StreamConfig:
    """How a sequence is mapped.

    Attributes:
        rows: of the grid that is matched.
        matcher: the front end; far_matcher: the same for loops, which begins further away from the answer.
        adjustment: of the window at every keyframe, and of all keyframes; its kernel is in pixels of a grid of 48 rows.
        match_sigma_px: of a match of weight 1, in pixels of a grid of 48 rows.
        keyframes, pairs: capacities.
        window: keyframes that are adjusted for each new one; the first two of them hold the gauge.
        offsets: how many keyframes back those lie that a new one is matched with.
        keyframe_flow: mean motion, as a share of the width, from which on a frame becomes a keyframe.
        loops: old keyframes, at most, that a new one is matched with.
        loop_gap: keyframes by which a loop goes back at least.
        loop_overlap: share of an old keyframe that the new one has to see.
        loop_share: mean weight of the matches from which on a loop is believed.
        close_every: keyframes between adjustments of all.
        agreements: neighbours that have to confirm a depth before it becomes a point.
        view_tolerance: relative depth within which they do.
        sensor_sigma: relative error of given depth.
        depth_sigma: relative error of depth that the adjustment may expect of a point.
        points_per_cell: along each side; depth between the middles of cells is interpolated.
        voxel_size, capacity: of the point map.
    """

    rows: int = 24
    matcher: Matcher = PatchMatcher()
    far_matcher: Matcher = PatchMatcher(restart_levels=4)
    adjustment: AdjustmentConfig = AdjustmentConfig(iterations=8, damping=1e-3, robust_px=0.15)
    match_sigma_px: float = 0.05
    keyframes: int = 128
    pairs: int = 768
    window: int = 10
    offsets: tuple[int, ...] = (1, 2, 3, 5)
    keyframe_flow: float = 0.015
    loops: int = 2
    loop_gap: int = 12
    loop_overlap: float = 0.5
    loop_share: float = 0.02  # true loops of redkitchen have 0.04 to 0.08 (some 0.006), false ones at most 0.002
    close_every: int = 8
    agreements: int = 2
    view_tolerance: float = 0.05
    sensor_sigma: float = 0.02
    depth_sigma: float = 0.1
    points_per_cell: int = 2
    voxel_size: float = 0.02
    capacity: int = 2**18

    def __post_init__(self):
        if not 1 <= min(self.offsets) <= max(self.offsets) < self.window <= self.keyframes:
            raise InputError(
                f"offsets {self.offsets}, window {self.window}, keyframes {self.keyframes}: expected "
                "1 <= offsets < window <= keyframes"
            )

    @property
    def sigma_px(self) -> float:
        """`match_sigma_px` in pixels of the grid itself."""
        return self.match_sigma_px * self.rows / _ROWS

    @property
    def degree(self) -> int:
        """Pairs that one keyframe is in, at most: with those around it, and as the newer and the older end of loops."""
        return 2 * len(self.offsets) + 3 * self.loops

    def kernel(self, *widths: float) -> AdjustmentConfig:
        """The adjustment with a kernel so many times as wide, in pixels of the grid itself."""
        robust_px = self.adjustment.robust_px and self.adjustment.robust_px * self.rows / _ROWS
        return dataclasses.replace(self.adjustment, robust_px=robust_px, kernel_widths=widths)


add = jax.jit(graphs.add_keyframe)
add_pairs = jax.jit(graphs.add_pairs)
evict = jax.jit(graphs.evict, static_argnums=1)
overlap = jax.jit(graphs.overlap)
move_points = jax.jit(graphs.move_points)
depth_variance = jax.jit(calibrated_variance, static_argnums=3)


@partial(jax.jit, static_argnums=(0, 1))
def match_new(config: StreamConfig, grid: tuple[int, int], graph: KeyframeGraph, slot, image: Array, static: Array):
    """Matches of a keyframe with a new frame, searched without knowing where: pixels and weights [h, w, 2], and their
    mean length as a share of the width."""
    images = jnp.stack([graph.images[slot], image]).astype(jnp.float32) / 255
    pair = jnp.array([[0, 1]])
    pixels, weights = config.matcher(images, pair, grid)
    weights = among_static(weights, pixels, pair, jnp.stack([graph.static[slot], static]))[0, 0]
    columns, rows = jnp.meshgrid(jnp.arange(grid[1]), jnp.arange(grid[0]))
    moved = jnp.linalg.norm(pixels[0, 0] - jnp.stack([columns, rows], -1) + 1e-9, axis=-1)
    weight = weights.mean(-1)
    length = jnp.where(weight.sum() > 0, (moved * weight).sum() / weight.sum(), grid[1]) / grid[1]
    return pixels[0, 0], weights, length


@partial(jax.jit, static_argnums=0)
def track(config: StreamConfig, graph: KeyframeGraph, slot, guess, pixels, weights, lens) -> Array:
    """Pose of a new frame from its matches with a keyframe, whose depth is taken as it is."""
    depth = graph.variables.inverse_depth[slot]
    poses = jnp.stack([graph.variables.poses.wxyz_xyz[slot], guess])
    both = jnp.stack([depth, depth])
    start = Variables(jaxlie.SE3(poses), both, jnp.stack([lens, lens]), jnp.tile(jnp.array([1.0, 0.0]), (2, 1)))
    priors = Priors.none(start, 1).with_depth(1 / both, 0.01)
    pair = jnp.array([[0, 1]])
    nothing = jnp.zeros_like(weights)
    matches = as_edges(pair, jnp.stack([pixels, pixels])[None], jnp.stack([weights, nothing])[None], 1, config.sigma_px)
    return adjust(matches, priors, start, config.kernel(10.0, 1.0)).variables.poses.wxyz_xyz[1]


@jax.jit
def carried_depth(graph: KeyframeGraph, slot, pose: Float[Array, " 7"], lens: Float[Array, " 4"]) -> Array:
    """Inverse depth that a new frame should have: the last keyframe's, moved into it; holes are filled from around."""
    variables = graph.variables
    inverse_depth = variables.inverse_depth[slot]
    height, width = inverse_depth.shape
    relative = (jaxlie.SE3(pose) @ jaxlie.SE3(variables.poses.wxyz_xyz[slot]).inverse()).as_matrix()[:3]
    seen, ratio, _, _ = warp(relative, inverse_depth.ravel(), variables.lens[slot], lens, pixel_grid(height, width))
    column, row = jnp.round(seen).astype(jnp.int32)
    inside = (ratio > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    at = jnp.where(inside, row * width + column, height * width)
    nearest = (
        jnp.zeros(height * width).at[at].max(inverse_depth.ravel() / jnp.where(ratio > 0, ratio, 1.0), mode="drop")
    )
    known = (nearest > 0).astype(jnp.float32).reshape(1, height, width)
    filled = pull_push(nearest.reshape(known.shape), known, 0.1)[0]
    return jnp.where(known[0] > 0, nearest.reshape(height, width), jnp.maximum(filled, 0.1 * jnp.median(inverse_depth)))


@partial(jax.jit, static_argnums=(0, 1))
def match_pairs(matcher: Matcher, grid: tuple[int, int], graph: KeyframeGraph, pairs: Array):
    """Matches of keyframes, searched around where the map says they are; none for pairs of negative slots."""
    held = jnp.maximum(pairs, 0)
    images = graph.images[held.ravel()].astype(jnp.float32) / 255
    local = jnp.arange(2 * len(pairs)).reshape(-1, 2)
    pixels, weights = matcher(images, local, grid, reproject(graph.variables, held))
    weights = among_static(weights, pixels, held, graph.static)
    return pixels, jnp.where(pairs[:, :1, None, None, None] >= 0, weights, 0.0)


def _adjusted(
    config: StreamConfig, widths: tuple[float, ...], matches: Matches, start: Variables,
    sensor: Float[Array, "v h w"], fixed: Bool[Array, " v"],
) -> tuple[Variables, Float[Array, "v h w"]]:  # fmt: skip
    """Variables and the variance of their inverse depth, which the matches bear out.

    Where no sensor says otherwise, a depth is held loosely to what it was. Held to the median of its frame it is pulled
    to the far side, since most of the pixels that are far from a median are near the camera: each adjustment then made
    the whole sequence a little larger (8-fold over 125 frames).
    """
    depth = jnp.where(sensor > 0, sensor, 1 / start.inverse_depth)
    sigma = jnp.where(sensor > 0, config.sensor_sigma, 1.0)
    priors = dataclasses.replace(Priors.none(start, 0).with_depth(depth, sigma), fixed=fixed)
    found = adjust(matches, priors, start, config.kernel(*widths)).variables
    return found, calibrated_variance(matches, priors, found, config.kernel(1.0))[0]


@partial(jax.jit, static_argnums=0)
def adjust_window(config: StreamConfig, graph: KeyframeGraph, first: Int[Array, ""] | int) -> KeyframeGraph:
    """The keyframes from slot `first` on, as many as the window holds; the first two stay."""
    slots = first + jnp.arange(config.window)
    apart = jnp.abs(graph.pairs[:, 1] - graph.pairs[:, 0])
    inside = (graph.pairs >= first).all(1) & (apart <= max(config.offsets))  # no loops
    chosen = jnp.nonzero(inside, size=config.window * len(config.offsets), fill_value=len(inside))[0]
    pairs = graph.pairs.at[chosen].get(mode="fill", fill_value=-1) - first
    pixels, weights = (a.at[chosen].get(mode="fill", fill_value=0.0) for a in (graph.pixels, graph.weights))
    start = jax.tree.map(lambda leaf: leaf[slots], graph.variables)
    matches = as_edges(pairs, pixels, weights, 2 * len(config.offsets), config.sigma_px)
    fixed = jnp.arange(config.window) < 2
    found = _adjusted(config, (3.0, 1.0), matches, start, graph.sensor[slots], fixed)
    old = (graph.variables, graph.variance)
    variables, variance = jax.tree.map(lambda old, new: old.at[slots].set(new), old, found)
    return dataclasses.replace(graph, variables=variables, variance=variance)


@partial(jax.jit, static_argnums=(0, 1))
def adjust_all(config: StreamConfig, count: int, graph: KeyframeGraph) -> KeyframeGraph:
    """The first `count` keyframes by all pairs; the first pose stays, and with it the scale by damping."""
    start = jax.tree.map(lambda leaf: leaf[:count], graph.variables)
    fixed = (jnp.arange(count) == 0) | (graph.frames[:count] < 0)
    matches = as_edges(graph.pairs, graph.pixels, graph.weights, config.degree, config.sigma_px)
    found = _adjusted(config, (10.0, 3.0, 1.0), matches, start, graph.sensor[:count], fixed)
    old = (graph.variables, graph.variance)
    variables, variance = jax.tree.map(lambda old, new: old.at[:count].set(new), old, found)
    return dataclasses.replace(graph, variables=variables, variance=variance)


@partial(jax.jit, static_argnums=0)
def confirmed(config: StreamConfig, graph: KeyframeGraph, slot) -> tuple[Array, Array]:
    """Pixels [h, w] of a keyframe that enough neighbours confirm, and the relative variance of their depth."""
    reach = max(_NEIGHBORS)
    wanted = slot + jnp.arange(-reach, reach + 1)
    slots = jnp.clip(wanted, 0, len(graph.frames) - 1)
    around = jax.tree.map(lambda leaf: leaf[slots], graph.variables)
    depth = 1 / around.inverse_depth
    held = (graph.frames[slots] >= 0) & (slots == wanted)
    valid = held[:, None, None] & ~filters.depth_edges(depth, 0.1) & graph.static[slots]
    agreements, _ = filters.view_agreement(depth, valid, around.cameras(), _NEIGHBORS, config.view_tolerance)
    # Where nothing was matched depth is what it was at the start, and neighbours may share that: its variance tells.
    relative = graph.variance[slot] * jnp.square(depth[reach])
    sure = valid[reach] & (agreements[reach] >= config.agreements) & (relative < config.depth_sigma**2)
    return sure, relative


@partial(jax.jit, static_argnums=(0, 1))
def insert_points(config: StreamConfig, grid: tuple[int, int], point_map: PointMap, graph: KeyframeGraph, slot):
    """The point map with the confirmed pixels of a keyframe, each weighing by its variance.

    A point as uncertain in depth as a voxel is large weighs 1.
    """
    sure, relative = confirmed(config, graph, slot)
    finer = (grid[0] * config.points_per_cell, grid[1] * config.points_per_cell)
    images = (graph.variables.inverse_depth[slot], jnp.where(sure, relative, 1.0))
    inverse_depth, relative = (jax.image.resize(image, finer, "linear") for image in images)
    # Between two cells the surface is only known if both are.
    sure = jax.image.resize(sure.astype(jnp.float32), finer, "linear") > 0.99
    image = jax.image.resize(graph.images[slot].astype(jnp.float32) / 255, (*finer, 3), "linear")
    positions = graph.variables.cameras()[slot].unproject(1 / inverse_depth).reshape(-1, 3)
    weights = jnp.square(config.voxel_size * inverse_depth) / relative
    return memory.insert(
        point_map, positions, image.reshape(-1, 3), weights.ravel(), sure.ravel(), provenance=memory.OBSERVED,
        voxel_size=config.voxel_size, keyframes=jnp.full(sure.size, graph.frames[slot]),
    )  # fmt: skip

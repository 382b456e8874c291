"""The steps of `stream.py` that run under `jit`: matching, tracking, adjusting and inserting, all of fixed shapes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float

from spatia_jax import memory
from spatia_jax.errors import InputError
from spatia_jax.mapper import filters
from spatia_jax.mapper import keyframes as graphs
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust
from spatia_jax.mapper.keyframes import KeyframeGraph
from spatia_jax.mapper.matching import Matcher, PatchMatcher
from spatia_jax.mapper.problem import Priors, Variables
from spatia_jax.mapper.reprojection import pixel_grid, warp
from spatia_jax.mapper.window import as_edges, reproject, widened
from spatia_jax.memory.point_map import PointMap
from spatia_jax.pyramid import pull_push

_NEIGHBORS = (-2, -1, 1, 2)  # keyframes that are asked to confirm a depth


@dataclass(frozen=True)
class StreamConfig:
    """How a sequence is mapped.

    Attributes:
        rows: of the grid that is matched.
        matcher: the front end.
        adjustment: of the window at every keyframe, and of all keyframes when a loop closes.
        match_sigma_px: of a match of weight 1, in pixels of the grid.
        keyframes, pairs: capacities.
        window: keyframes that are adjusted for each new one; the first two of them hold the gauge.
        radius: how many keyframes before a new one it is matched with.
        keyframe_flow: mean motion, as a share of the width, from which on a frame becomes a keyframe.
        loops: old keyframes, at most, that a new one is matched with.
        loop_gap: keyframes by which a loop goes back at least.
        loop_overlap: share of an old keyframe that the new one has to see.
        loop_share: mean weight of the matches from which on a loop is believed.
        close_every: keyframes between adjustments of all, if there were loops.
        agreements: neighbours that have to confirm a depth before it becomes a point.
        view_tolerance: relative depth within which they do.
        sensor_sigma: relative error of given depth.
        least_matched: summed weight of its matches that a pixel needs to become a point.
        voxel_size, capacity: of the point map.
    """

    rows: int = 24
    matcher: Matcher = PatchMatcher()
    adjustment: AdjustmentConfig = AdjustmentConfig(iterations=8, damping=1e-3, robust_px=0.15)
    match_sigma_px: float = 0.05
    keyframes: int = 128
    pairs: int = 640
    window: int = 8
    radius: int = 3
    keyframe_flow: float = 0.015
    loops: int = 2
    loop_gap: int = 12
    loop_overlap: float = 0.5
    loop_share: float = 0.2
    close_every: int = 8
    agreements: int = 2
    view_tolerance: float = 0.05
    sensor_sigma: float = 0.02
    least_matched: float = 0.5
    voxel_size: float = 0.02
    capacity: int = 2**18

    def __post_init__(self):
        if not 2 <= self.radius + 1 <= self.window <= self.keyframes:
            raise InputError(
                f"radius {self.radius}, window {self.window}, keyframes {self.keyframes}: expected "
                "1 <= radius < window <= keyframes"
            )

    @property
    def degree(self) -> int:
        """Edges that leave one keyframe, at most, in the adjustment of all."""
        return 2 * self.radius + 2 * self.loops


add = jax.jit(graphs.add_keyframe)
evict = jax.jit(graphs.evict, static_argnums=1)
overlap = jax.jit(graphs.overlap)
move_points = jax.jit(graphs.move_points)


@partial(jax.jit, static_argnums=(0, 1))
def match_new(config: StreamConfig, grid: tuple[int, int], before: Array, image: Array):
    """Matches of the last keyframes with a new frame, and the mean motion to the last one as a share of the width."""
    images = jnp.concatenate([before, image[None]]).astype(jnp.float32) / 255
    pairs = jnp.stack([jnp.arange(config.radius), jnp.full(config.radius, config.radius)], axis=1)
    pixels, weights = config.matcher(images, pairs, grid)
    columns, rows = jnp.meshgrid(jnp.arange(grid[1]), jnp.arange(grid[0]))
    moved = jnp.linalg.norm(pixels[-1, 0] - jnp.stack([columns, rows], -1) + 1e-9, axis=-1)
    weight = weights[-1, 0].mean(-1)
    return pixels, weights, jnp.where(weight.sum() > 0, (moved * weight).sum() / weight.sum(), grid[1]) / grid[1]


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
    matches = as_edges(
        pair, jnp.stack([pixels, pixels])[None], jnp.stack([weights, nothing])[None], 1, config.match_sigma_px
    )
    for width in (10.0, 1.0):
        start = adjust(matches, priors, start, widened(config.adjustment, width)).variables
    return start.poses.wxyz_xyz[1]


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
def match_loops(config: StreamConfig, grid: tuple[int, int], graph: KeyframeGraph, pairs: Array):
    """Matches with old keyframes, searched around where the map says they are."""
    held = jnp.maximum(pairs, 0)
    images = graph.images[held.ravel()].astype(jnp.float32) / 255
    local = jnp.arange(2 * len(pairs)).reshape(-1, 2)
    pixels, weights = config.matcher(images, local, grid, reproject(graph.variables, held))
    return pixels, jnp.where(pairs[:, :1, None, None, None] >= 0, weights, 0.0)


def _priors(config: StreamConfig, graph: KeyframeGraph, variables: Variables, sensor: Array, fixed: Array) -> Priors:
    middle = jnp.median(variables.inverse_depth, axis=(1, 2), keepdims=True)
    depth = jnp.where(sensor > 0, sensor, 1 / middle)
    sigma = jnp.where(sensor > 0, config.sensor_sigma, 1.0)
    return dataclasses.replace(Priors.none(variables, 0).with_depth(depth, sigma), fixed=fixed)


@partial(jax.jit, static_argnums=0)
def adjust_window(config: StreamConfig, graph: KeyframeGraph, first: Array) -> KeyframeGraph:
    """The keyframes from slot `first` on, as many as the window holds; the first two stay."""
    slots = first + jnp.arange(config.window)
    inside = (graph.pairs >= first).all(1)
    chosen = jnp.nonzero(inside, size=config.window * (config.radius + config.loops), fill_value=len(inside))[0]
    pairs = graph.pairs.at[chosen].get(mode="fill", fill_value=-1) - first
    pixels, weights = (a.at[chosen].get(mode="fill", fill_value=0.0) for a in (graph.pixels, graph.weights))
    start = jax.tree.map(lambda leaf: leaf[slots], graph.variables)
    priors = _priors(config, graph, start, graph.sensor[slots], jnp.arange(config.window) < 2)
    matches = as_edges(pairs, pixels, weights, 2 * config.radius, config.match_sigma_px)
    for width in (3.0, 1.0):
        start = adjust(matches, priors, start, widened(config.adjustment, width)).variables
    variables = jax.tree.map(lambda old, new: old.at[slots].set(new), graph.variables, start)
    return dataclasses.replace(graph, variables=variables)


@partial(jax.jit, static_argnums=0)
def adjust_all(config: StreamConfig, graph: KeyframeGraph) -> KeyframeGraph:
    """All keyframes by all pairs; the first pose stays, and with it the scale by damping."""
    fixed = (jnp.arange(len(graph.frames)) == 0) | (graph.frames < 0)
    priors = _priors(config, graph, graph.variables, graph.sensor, fixed)
    pairs = jnp.where(graph.pairs >= 0, graph.pairs, len(graph.frames))
    matches = as_edges(pairs, graph.pixels, graph.weights, config.degree, config.match_sigma_px)
    variables = graph.variables
    for width in (10.0, 3.0, 1.0):
        variables = adjust(matches, priors, variables, widened(config.adjustment, width)).variables
    return dataclasses.replace(graph, variables=variables)


@partial(jax.jit, static_argnums=0)
def confirmed(config: StreamConfig, graph: KeyframeGraph, slot) -> tuple[Array, Array]:
    """Pixels [h, w] of a keyframe that enough neighbours confirm, and the share of neighbours that do."""
    reach = max(_NEIGHBORS)
    wanted = slot + jnp.arange(-reach, reach + 1)
    slots = jnp.clip(wanted, 0, len(graph.frames) - 1)
    around = jax.tree.map(lambda leaf: leaf[slots], graph.variables)
    depth = 1 / around.inverse_depth
    held = (graph.frames[slots] >= 0) & (slots == wanted)
    valid = held[:, None, None] & ~filters.depth_edges(depth, 0.1)
    agreements, inside = filters.view_agreement(depth, valid, around.cameras(), _NEIGHBORS, config.view_tolerance)
    # What nothing was matched with kept the depth that it was given at the start, and neighbours may share that.
    mine = (graph.pairs == slot)[..., None, None]
    matched = jnp.where(mine, graph.weights.mean(-1), 0.0).sum((0, 1))
    sure = valid[reach] & (agreements[reach] >= config.agreements) & (matched > config.least_matched)
    return sure, agreements[reach] / jnp.maximum(inside[reach], 1)


@partial(jax.jit, static_argnums=(0, 1))
def insert_points(config: StreamConfig, grid: tuple[int, int], point_map: PointMap, graph: KeyframeGraph, slot):
    """The point map with the confirmed pixels of a keyframe."""
    sure, share = confirmed(config, graph, slot)
    depth = 1 / graph.variables.inverse_depth[slot]
    image = jax.image.resize(graph.images[slot].astype(jnp.float32) / 255, (*grid, 3), "linear")
    positions = graph.variables.cameras()[slot].unproject(depth).reshape(-1, 3)
    weights = (share / jnp.square(depth)).ravel()
    return memory.insert(
        point_map, positions, image.reshape(-1, 3), weights, sure.ravel(), provenance=memory.OBSERVED,
        voxel_size=config.voxel_size, keyframes=jnp.full(weights.shape, graph.frames[slot]),
    )  # fmt: skip

"""Keyframes and the graph of matches between them: fixed numbers of both, the most redundant keyframe leaving first.

Also what happens to the point map when keyframes are corrected: points know the frame that brought them, and move.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.cameras.camera import Cameras
from spatia_jax.mapper.problem import Variables
from spatia_jax.memory.frame_bank import view_distances
from spatia_jax.memory.point_map import PointMap


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyframeGraph:
    """k slots for keyframes, oldest first, and p slots for matched pairs.

    Attributes:
        frames: [k] int32 number of the frame in its sequence; -1 in an empty slot.
        images: [k, h, w, 3] uint8.
        variables: poses, inverse depth [k, gh, gw], lens.
        variance: [k, gh, gw] of inverse depth, by the last adjustment; infinite before any.
        sensor: [k, gh, gw] given depth, 0 where none.
        static: [k, gh, gw] bool, False where something is known to move.
        pairs: [p, 2] int32 slots of two keyframes; -1, -1 in an empty slot.
        pixels, weights: [p, 2, gh, gw, 2] matches in both directions, weights 0..1.
    """

    frames: Array
    images: Array
    variables: Variables
    variance: Array
    sensor: Array
    static: Array
    pairs: Array
    pixels: Array
    weights: Array

    @property
    def count(self) -> Int[Array, ""]:
        return (self.frames >= 0).sum()


def empty_graph(keyframes: int, pairs: int, size: tuple[int, int], grid: tuple[int, int]) -> KeyframeGraph:
    """Room for so many keyframes and pairs of images of `size` (height, width), matched on `grid`."""
    cameras = Cameras(
        jnp.broadcast_to(jnp.eye(3, 4), (keyframes, 3, 4)), jnp.tile(jnp.array([1.0, 1.0, 0.5, 0.5]), (keyframes, 1))
    )
    return KeyframeGraph(
        frames=jnp.full(keyframes, -1, jnp.int32),
        images=jnp.zeros((keyframes, *size, 3), jnp.uint8),
        variables=Variables.start(cameras, jnp.full((keyframes, *grid), 0.5)),
        variance=jnp.full((keyframes, *grid), jnp.inf),
        sensor=jnp.zeros((keyframes, *grid)),
        static=jnp.ones((keyframes, *grid), bool),
        pairs=jnp.full((pairs, 2), -1, jnp.int32),
        pixels=jnp.zeros((pairs, 2, *grid, 2)),
        weights=jnp.zeros((pairs, 2, *grid, 2)),
    )


def add_keyframe(
    graph: KeyframeGraph,
    frame: Int[Array, ""],
    image: Array,
    pose: Float[Array, " 7"],
    inverse_depth: Array,
    lens: Array,
    sensor: Array,
    static: Bool[Array, "h w"],
) -> KeyframeGraph:
    """The graph with one keyframe more, in the slot after the last; when full, `evict` first."""
    at, kept = graph.count, graph.variables
    variables = Variables(
        jaxlie.SE3(kept.poses.wxyz_xyz.at[at].set(pose)),
        kept.inverse_depth.at[at].set(inverse_depth),
        kept.lens.at[at].set(lens),
        kept.prior_fit.at[at].set(jnp.array([1.0, 0.0])),
    )
    return dataclasses.replace(
        graph,
        frames=graph.frames.at[at].set(frame),
        images=graph.images.at[at].set(image),
        variables=variables,
        variance=graph.variance.at[at].set(jnp.inf),
        sensor=graph.sensor.at[at].set(sensor),
        static=graph.static.at[at].set(static),
    )


def add_pairs(graph: KeyframeGraph, pairs: Int[Array, "q 2"], pixels: Array, weights: Array) -> KeyframeGraph:
    """The graph with more matched pairs: in their own slots if they are there, else in empty ones, else in place of the
    pairs that weigh least. Given pairs with a negative slot are left out.
    """
    size = len(graph.pairs)
    same = (graph.pairs == pairs[:, None]).all(-1) & (pairs[:, :1] >= 0)  # [q, p]
    strength = jnp.where(graph.pairs[:, 0] >= 0, graph.weights.sum((1, 2, 3, 4)), -1.0)
    order = jnp.argsort(jnp.where(same.any(0), jnp.inf, strength))
    known = same.any(1)
    fresh = (pairs[:, 0] >= 0) & ~known
    at = jnp.where(known, same.argmax(1), jnp.where(fresh, order[jnp.cumsum(fresh) - 1], size))
    return dataclasses.replace(
        graph,
        pairs=graph.pairs.at[at].set(pairs, mode="drop"),
        pixels=graph.pixels.at[at].set(pixels, mode="drop"),
        weights=graph.weights.at[at].set(weights, mode="drop"),
    )


def remove_keyframe(graph: KeyframeGraph, slot: Int[Array, ""] | int) -> KeyframeGraph:
    """The graph without one keyframe and its pairs; later keyframes move up by one."""
    size = len(graph.frames)
    order = jnp.arange(size)
    order = jnp.where(order >= slot, jnp.minimum(order + 1, size - 1), order)
    names = ("frames", "images", "variables", "variance", "sensor", "static")
    moved = jax.tree.map(lambda leaf: leaf[order], {name: getattr(graph, name) for name in names})
    moved["frames"] = moved["frames"].at[-1].set(-1)
    gone = (graph.pairs == slot).any(1, keepdims=True)
    pairs = jnp.where(gone, -1, graph.pairs - (graph.pairs > slot))
    return dataclasses.replace(graph, pairs=pairs, **moved)


def evict(graph: KeyframeGraph, recent: int) -> KeyframeGraph:
    """The graph without its most redundant keyframe: not the first, and none of the last `recent`."""
    size, count = len(graph.frames), graph.count
    held = jnp.arange(size) < count
    distances = view_distances(graph.variables.cameras())
    distances = jnp.where(held & ~jnp.eye(size, dtype=bool), distances, jnp.inf)
    redundancy = jnp.sort(distances, axis=1)[:, :2].sum(1)
    free = held & (jnp.arange(size) > 0) & (jnp.arange(size) < count - recent)
    return remove_keyframe(graph, jnp.argmin(jnp.where(free, redundancy, jnp.inf)))


def overlap(graph: KeyframeGraph, slot: Int[Array, ""]) -> Float[Array, " k"]:
    """The share of each keyframe's pixels that one keyframe sees too, by depth and pose; 0 for empty slots.

    A pixel is seen when it falls into that view and is not far behind what that view sees there.
    """
    variables = graph.variables
    _, height, width = variables.inverse_depth.shape
    cameras = variables.cameras()
    points = cameras.unproject(1 / variables.inverse_depth)
    seen_depth = 1 / variables.inverse_depth[slot]

    def share(points):
        pixels, depth = cameras[slot].project(points.reshape(-1, 3), height, width)
        column, row = (jnp.round(pixels[:, axis]).astype(jnp.int32) for axis in (0, 1))
        inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        there = seen_depth[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
        return (inside & (depth < 1.5 * there)).mean()

    return jnp.where(graph.frames >= 0, jax.vmap(share)(points), 0.0)


def move_points(
    point_map: PointMap,
    frames: Int[Array, " k"],
    before: Cameras,
    after: Cameras,
    scale: Float[Array, " k"],
    frozen: Bool[Array, " n"] | None = None,
) -> PointMap:
    """The map after a correction of keyframes: each point keeps its place in the view of the frame that brought it.

    Args:
        frames: numbers of the corrected frames, by which points know them; -1 for none.
        before, after: their cameras [k]; scale: what depth was multiplied by in each.
        frozen: points that stay, whoever brought them.

    Points of other frames stay. Voxels are not merged anew: the next insertion does.
    """
    mine = (point_map.keyframes[:, None] == frames) & (frames >= 0)
    which = jnp.argmax(mine, axis=1)
    moves = mine.any(axis=1) & point_map.valid
    if frozen is not None:
        moves &= ~frozen
    old, new = before.cam_from_world[which], after.world_from_cam[which]
    high = jax.lax.Precision.HIGHEST
    seen = jnp.einsum("nij,nj->ni", old[..., :3], point_map.positions, precision=high) + old[..., 3]
    placed = jnp.einsum("nij,nj->ni", new[..., :3], seen * scale[which, None], precision=high) + new[..., 3]
    return dataclasses.replace(point_map, positions=jnp.where(moves[:, None], placed, point_map.positions))

"""The point map: a fixed number of slots that hold the static scene as coloured points, one per voxel.

Every point knows where it comes from. In a voxel only the most trusted kind counts: what was observed (photo, RGB-D)
before what the user edited before what a clip generated. So the model's own output never moves, recolours or replaces
an observation, and an error that it once made does not spread over what is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.memory.voxels import voxel_order
from spatia_jax.sorting import stable_argsort

EMPTY = -1
OBSERVED = 0
EDIT = 2**30
MAX_WEIGHT = 100.0  # so that a long-known point can still follow new evidence
_MAX_COUNT = 2**20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PointMap:
    """n slots for points.

    Attributes:
        positions: [n, 3] world coordinates, metres or scene units.
        colors: [n, 3] in [0, 1].
        weights: [n] how much evidence the mean position and colour rest on, at most `MAX_WEIGHT`.
        counts: [n] int32, how many measurements were merged.
        provenance: [n] int32, EMPTY (-1), OBSERVED (0), k >= 1 for points that clip k generated, EDIT for the user's.
        keyframes: [n] int32, which frame first brought the point; -1 if not told.
    """

    positions: Array
    colors: Array
    weights: Array
    counts: Array
    provenance: Array
    keyframes: Array

    @property
    def capacity(self) -> int:
        return self.provenance.shape[-1]

    @property
    def valid(self) -> Bool[Array, " n"]:
        """Which slots hold a point."""
        return self.provenance >= 0

    @property
    def num_points(self) -> Int[Array, ""]:
        return self.valid.sum(dtype=jnp.int32)


def empty(capacity: int) -> PointMap:
    """A map of `capacity` empty slots."""
    if capacity < 1:
        raise InputError(f"a point map of capacity {capacity} cannot hold a point; give at least 1")
    return PointMap(
        positions=jnp.zeros((capacity, 3), jnp.float32),
        colors=jnp.zeros((capacity, 3), jnp.float32),
        weights=jnp.zeros(capacity, jnp.float32),
        counts=jnp.zeros(capacity, jnp.int32),
        provenance=jnp.full(capacity, EMPTY, jnp.int32),
        keyframes=jnp.full(capacity, -1, jnp.int32),
    )


def insert(
    point_map: PointMap,
    positions: Float[Array, "m 3"],
    colors: Float[Array, "m 3"],
    weights: Float[Array, " m"],
    valid: Bool[Array, " m"],
    *,
    provenance: Int[Array, ""] | int,
    voxel_size: float | Array,
    keyframes: Int[Array, " m"] | None = None,
) -> PointMap:
    """Merge measurements into the map, voxel by voxel, and evict if it overflows. Its cost depends on shapes only.

    Points of one voxel become one: positions and colours by weighted mean, weights and counts by sum, provenance the
    oldest, the keyframe the first's. Measurements that are not finite, or weigh nothing, are left out.

    Args:
        provenance: of all the measurements; OBSERVED, a clip's number, or EDIT.
        voxel_size: edge of a voxel, in the units of the positions.
    """
    fresh = PointMap(
        positions=positions,
        colors=colors,
        weights=jnp.minimum(weights, MAX_WEIGHT),
        counts=jnp.ones(valid.shape, jnp.int32),
        provenance=jnp.where(valid & (weights > 0), provenance, EMPTY).astype(jnp.int32),
        keyframes=jnp.full(valid.shape, -1, jnp.int32) if keyframes is None else keyframes,
    )
    points = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), point_map, fresh)
    usable = points.valid & jnp.isfinite(points.colors).all(axis=-1) & jnp.isfinite(points.weights)
    order, voxel = voxel_order(points.positions, usable, voxel_size)
    merged = _merge(jax.tree.map(lambda leaf: leaf[order], points), voxel)
    capacity = point_map.capacity

    def evict() -> PointMap:
        kept = stable_argsort(_dispensability(merged))[:capacity]
        return jax.tree.map(lambda leaf: leaf[kept], merged)

    def cut() -> PointMap:
        return jax.tree.map(lambda leaf: leaf[:capacity], merged)  # the points are at the front

    return lax.cond(merged.num_points > capacity, evict, cut)


def _trust(provenance: Int[Array, " n"]) -> Int[Array, " n"]:
    """0 for observed, 1 for edited, 2 for generated points."""
    return jnp.where(provenance == OBSERVED, 0, jnp.where(provenance == EDIT, 1, 2))


def _merge(points: PointMap, voxel: Int[Array, " l"]) -> PointMap:
    """One point per voxel number, in that order. `voxel` ascends; the number l (out of range) drops a point."""
    length = voxel.shape[0]
    there = jnp.minimum(voxel, length - 1)  # to read a voxel's value back at its points
    total: Any = {"num_segments": length, "indices_are_sorted": True}
    trust = _trust(points.provenance)
    counted = (voxel < length) & (trust == jax.ops.segment_min(trust, voxel, **total)[there])

    position = jnp.arange(length, dtype=jnp.int32)
    first = jax.ops.segment_min(jnp.where(counted, position, length), voxel, **total)
    filled = first < length
    first = jnp.minimum(first, length - 1)

    # Means are taken around the first point, so that a point that meets nothing new keeps every bit.
    weights = jnp.where(counted, points.weights, 0.0)
    values = jnp.concatenate([points.positions, points.colors], axis=-1)
    base = values[first]
    offsets = jnp.where(counted[:, None], weights[:, None] * (values - base[there]), 0.0)
    sums = jax.ops.segment_sum(jnp.concatenate([offsets, weights[:, None]], axis=-1), voxel, **total)
    mean = base + sums[:, :6] / jnp.where(sums[:, 6:] > 0, sums[:, 6:], 1.0)

    counts = jax.ops.segment_sum(jnp.where(counted, points.counts, 0), voxel, **total)
    oldest = jax.ops.segment_min(jnp.where(counted, points.provenance, EDIT), voxel, **total)
    return PointMap(
        positions=jnp.where(filled[:, None], mean[:, :3], 0.0),
        colors=jnp.where(filled[:, None], mean[:, 3:], 0.0),
        weights=jnp.where(filled, jnp.minimum(sums[:, 6], MAX_WEIGHT), 0.0),
        counts=jnp.where(filled, jnp.minimum(counts, _MAX_COUNT), 0),
        provenance=jnp.where(filled, oldest, EMPTY),
        keyframes=jnp.where(filled, points.keyframes[first], -1),
    )


def _dispensability(points: PointMap) -> Array:
    """A key that sorts points by what the map would miss most.

    Observed before edited before generated points; then those measured more often; then the newer ones.
    """
    often = jnp.clip(points.counts, 0, 2**8 - 1)
    new = jnp.clip(points.provenance, 0, 2**20 - 1)
    key = (_trust(points.provenance) << 28) | ((2**8 - 1 - often) << 20) | (2**20 - 1 - new)
    return jnp.where(points.valid, key, 2**31 - 1).astype(jnp.uint32)


def remove(point_map: PointMap, mask: Bool[Array, " n"]) -> PointMap:
    """The map without the masked points. Their slots are free; what was observed there is forgotten."""
    blank = empty(point_map.capacity)
    return jax.tree.map(
        lambda leaf, none: jnp.where(mask.reshape(-1, *[1] * (leaf.ndim - 1)), none, leaf), point_map, blank
    )


def recolor(point_map: PointMap, mask: Bool[Array, " n"], color: Float[Array, " 3"]) -> PointMap:
    """The map with the masked points in another colour, as the user's edit."""
    mask = mask & point_map.valid
    return replace(
        point_map,
        colors=jnp.where(mask[:, None], color, point_map.colors),
        provenance=jnp.where(mask, EDIT, point_map.provenance),
    )


def from_depth(
    image: Float[Array, "h w c"],
    depth: Float[Array, "h w"],
    camera: Cameras,
    mask: Bool[Array, "h w"],
    *,
    edge: float = 0.05,
) -> tuple[Float[Array, "n 3"], Float[Array, "n c"], Float[Array, " n"], Bool[Array, " n"]]:
    """Measurements for `insert` out of one view with depth; n = h * w.

    Pixels at depth edges mix two surfaces and are left out: those where inverse depth, which is linear along a plane,
    bends by more than `edge` of itself between neighbours. Weights fall with the square of the depth, as the precision
    of depth does.

    Args:
        depth: z-depth; 0, negative or not finite where unknown.
        mask: pixels to use.

    Returns:
        Positions in the world, colours, weights, valid.
    """
    known = mask & (depth > 0) & jnp.isfinite(depth)
    safe = jnp.where(known, depth, 1.0)
    inverse = 1.0 / safe
    padded, padded_known = jnp.pad(inverse, 1), jnp.pad(known, 1)
    smooth = known
    for before, after in ((jnp.s_[:-2, 1:-1], jnp.s_[2:, 1:-1]), (jnp.s_[1:-1, :-2], jnp.s_[1:-1, 2:])):
        bend = jnp.abs(padded[before] + padded[after] - 2.0 * inverse)
        smooth &= ~(padded_known[before] & padded_known[after]) | (bend <= edge * inverse)
    positions = camera.unproject(safe)
    weights = 1.0 / jnp.maximum(safe, 0.1) ** 2
    return positions.reshape(-1, 3), image.reshape(-1, image.shape[-1]), weights.reshape(-1), smooth.reshape(-1)

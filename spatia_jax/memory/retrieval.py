"""Which past frames saw what the next clip will see.

Two strategies behind one Protocol. `VoxelIoU` is the paper's (supplementary Algorithm 1): for every target view the
candidate whose visible voxels overlap most, if by more than a threshold, gathered as a set. `CovisibleAssignment` is
the released code's (spec/spatia.md 2.6): counts of points that both views see, and the one-to-one assignment of
candidates to targets that maximises their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.memory.assignment import assign
from spatia_jax.memory.frame_bank import FrameBank
from spatia_jax.memory.point_map import PointMap
from spatia_jax.memory.visibility import visibility
from spatia_jax.memory.voxels import number_voxels


class Retrieval(Protocol):
    """How target views choose among candidates, given what each of them sees."""

    def match(
        self,
        positions: Float[Array, "n 3"],
        target_sees: Bool[Array, "t n"],
        candidate_sees: Bool[Array, "m n"],
        available: Bool[Array, " m"],
    ) -> tuple[Int[Array, " t"], Float[Array, " t"], Bool[Array, " t"]]:
        """For every target: the candidate, its score, and whether there is one."""
        ...


@dataclass(frozen=True)
class CovisibleAssignment:
    """One-to-one assignment with the largest sum of co-visible points.

    Every target gets another candidate; where there are more targets than candidates, some get none. Among assignments
    of equal sum the choice is deterministic and otherwise unspecified.

    Attributes:
        min_points: a pair has to share more points than this. The released code takes any pair: -1.
    """

    min_points: int = 0

    def match(self, positions, target_sees, candidate_sees, available):
        shared = common(target_sees, candidate_sees).astype(jnp.int32)
        # An unavailable candidate, or none at all (the columns added), is worth less than one that shares nothing.
        worth = jnp.pad(jnp.where(available, shared, -1), ((0, 0), (0, len(shared))), constant_values=-1)
        chosen = assign(-worth)
        score = jnp.take_along_axis(worth, chosen[:, None], axis=1)[:, 0]
        found = (score >= 0) & (score > self.min_points)
        return jnp.minimum(chosen, shared.shape[1] - 1), score.astype(jnp.float32), found


@dataclass(frozen=True)
class VoxelIoU:
    """The candidate of greatest overlap: voxels that hold points seen in both views over those seen in either.

    Attributes:
        voxel_size: metres or scene units. The paper does not tell it; a tenth of a metre is ten of its map's voxels.
        threshold: the overlap has to exceed it. Not told either.
    """

    voxel_size: float = 0.1
    threshold: float = 0.04

    def __post_init__(self):
        if not self.voxel_size > 0:
            raise InputError(f"retrieval voxel_size is {self.voxel_size}; it has to be above 0, in metres")

    def match(self, positions, target_sees, candidate_sees, available):
        voxel = number_voxels(positions, self.voxel_size)

        def occupied(sees: Bool[Array, "v n"]) -> Bool[Array, "v n"]:
            return jnp.zeros_like(sees).at[:, voxel].max(sees)

        target, candidate = occupied(target_sees), occupied(candidate_sees)
        both = common(target, candidate)
        either = target.sum(axis=1)[:, None] + candidate.sum(axis=1) - both
        overlap = jnp.where(available, both / jnp.maximum(either, 1.0), -1.0)
        score = overlap.max(axis=1)
        return overlap.argmax(axis=1), score, score > self.threshold


@dataclass(frozen=True)
class RetrievalConfig:
    """Attributes:
    strategy: one of the two above, or anything else that follows the Protocol.
    tolerance: how far behind the nearest point of its pixel a point may lie and still be seen, metres or scene
        units. The released code takes 1e-6: one point per pixel.
    """

    strategy: CovisibleAssignment | VoxelIoU = CovisibleAssignment()
    tolerance: float = 0.05


def common(a: Bool[Array, "t n"], b: Bool[Array, "m n"]) -> Float[Array, "t m"]:
    """How many are true in both; exact, since float32 counts to 2^24 and accelerators multiply 0 and 1 exactly."""
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32).T)


@partial(jax.jit, static_argnames=("config", "num_references", "height", "width"))
def retrieve(
    bank: FrameBank,
    point_map: PointMap,
    cameras: Cameras,
    config: RetrievalConfig,
    *,
    num_references: int,
    height: int,
    width: int,
) -> tuple[Int[Array, " K"], Float[Array, " K"], Bool[Array, " K"]]:
    """Slots of the bank for the K references of a clip, in the order of the target views, each at most once.

    Args:
        cameras: the target views, v of them; not the whole clip but every n-th view.
        num_references: K. Further matches are left out; missing ones are marked as not found.
        height, width: resolution at which points are judged visible.

    Returns:
        Slots (0 where not found), scores (points or overlap; 0 where not found), found.
    """

    def sees(views: Cameras) -> Bool[Array, "v n"]:
        return visibility(point_map.positions, point_map.valid, views, height, width, config.tolerance)

    matched = config.strategy.match(point_map.positions, sees(cameras), sees(bank.cameras), bank.valid)
    return _each_once(matched, num_references)


def retrieve_by_overlap(
    overlap: Float[Array, "t m"], available: Bool[Array, " m"], threshold: float, num_references: int
) -> tuple[Int[Array, " K"], Float[Array, " K"], Bool[Array, " K"]]:
    """`retrieve` with `VoxelIoU`, where the 3D-IoU of targets and candidates is known already."""
    overlap = jnp.where(available, overlap, -1.0)
    score = overlap.max(axis=1)
    return _each_once((overlap.argmax(axis=1), score, score > threshold), num_references)


def _each_once(matched: tuple[Array, Array, Array], num_references: int) -> tuple[Array, Array, Array]:
    """K matches in the order of their targets, each candidate at most once."""
    slot, score, found = matched
    # A candidate chosen twice counts for the first target only.
    earlier = jnp.tri(len(slot), k=-1, dtype=bool)
    found &= ~((slot[:, None] == slot) & found & earlier).any(axis=1)
    place = jnp.where(found, jnp.cumsum(found) - 1, num_references)

    def gather(values: Array) -> Array:
        return jnp.zeros(num_references, values.dtype).at[place].set(values, mode="drop")

    return gather(slot.astype(jnp.int32)), gather(score), gather(found)

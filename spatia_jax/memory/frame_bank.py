"""The frame bank: past frames with their cameras, as many as fit, the most redundant one leaving first."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrameBank:
    """m slots for frames, oldest first. The frame in slot 0 stays for good.

    Attributes:
        frames: [m, h, w, 3] uint8.
        cameras: Cameras [m].
        clip: [m] int32, the clip that brought the frame; -1 for an empty slot.
    """

    frames: Array
    cameras: Cameras
    clip: Array

    @property
    def valid(self) -> Bool[Array, " m"]:
        """Which slots hold a frame."""
        return self.clip >= 0


def empty_bank(capacity: int, height: int, width: int) -> FrameBank:
    """A bank of `capacity` empty slots for frames of one size."""
    if capacity < 1:
        raise InputError(f"a frame bank of capacity {capacity} cannot hold a frame; give at least 1")
    identity = jnp.broadcast_to(jnp.eye(3, 4, dtype=jnp.float32), (capacity, 3, 4))
    return FrameBank(
        frames=jnp.zeros((capacity, height, width, 3), jnp.uint8),
        cameras=Cameras(identity, jnp.tile(jnp.array([1.0, 1.0, 0.5, 0.5], jnp.float32), (capacity, 1))),
        clip=jnp.full(capacity, -1, jnp.int32),
    )


def remember(
    bank: FrameBank, frames: UInt8[Array, "f h w 3"], cameras: Cameras, clip: Int[Array, ""] | int
) -> FrameBank:
    """The bank with frames added one by one, oldest first; when it is full, the most redundant frame leaves.

    Redundant is a frame whose two nearest neighbours, the new frame included, are near: so a long path is thinned
    evenly, and a place that is seen again is not kept twice. Of equally redundant frames the oldest leaves; the first
    frame never does.
    """

    def add(bank: FrameBank, new: tuple[Array, Cameras]) -> tuple[FrameBank, None]:
        m = bank.clip.shape[0]
        fresh = jax.tree.map(lambda leaf: leaf[None], FrameBank(*new, jnp.asarray(clip, jnp.int32)))
        grown = jax.tree.map(lambda old, one: jnp.concatenate([old, one]), bank, fresh)
        slots = jnp.arange(m)
        leaves = _most_redundant(grown)
        # A full bank closes the gap that a frame leaves, and the new one, at m, is last.
        source = jnp.where(bank.valid.all(), slots + (slots >= leaves), jnp.where(slots == bank.valid.sum(), m, slots))
        return jax.tree.map(lambda leaf: leaf[source], grown), None

    return lax.scan(add, bank, (frames, cameras))[0]


def _most_redundant(bank: FrameBank) -> Int[Array, ""]:
    """The slot, not the first and if possible not the last, whose two nearest neighbours are nearest."""
    count = bank.clip.shape[0]
    others = bank.valid & ~jnp.eye(count, dtype=bool)
    nearest = jnp.sort(jnp.where(others, view_distances(bank.cameras), jnp.inf), axis=1)
    redundancy = nearest[:, :2].sum(axis=1).at[0].set(jnp.inf).at[-1].set(jnp.finfo(jnp.float32).max)
    return jnp.argmin(redundancy)


def view_distances(cameras: Cameras) -> Float[Array, "v v"]:
    """How differently pairs of cameras look: distance of the centres over the spread of all, plus angle in radians."""
    centers, forward = cameras.centers, cameras.cam_from_world[:, 2, :3]
    spread = jnp.sqrt(((centers - centers.mean(axis=0)) ** 2).sum(axis=-1).mean())
    apart = jnp.linalg.norm(centers[:, None] - centers, axis=-1) / jnp.maximum(spread, 1e-6)
    # The chord between the viewing directions: an arccos would lose the small angles.
    chord = jnp.linalg.norm(forward[:, None] - forward, axis=-1)
    return apart + 2.0 * jnp.arcsin(jnp.clip(chord / 2.0, 0.0, 1.0))

"""Frames computed tile by tile and group by group, with the numbers of whole ones: for the autoencoder's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from spatia_jax.models.autoencoder_layers import Cut, Stream, whole_frame


class Level(NamedTuple):
    """A resolution on the way between pixels and latents: what a tile is there."""

    scale: int  # rows and columns for each of the latents
    margin: int  # rows and columns around the tile that are needed to compute it


def cutter(levels: Sequence[Level], size: tuple[int, int], tile: tuple[int, int], corner: Array) -> Cut:
    """Cuts the window that one tile needs out of what was computed at the level before.

    A window is the tile with its margin, moved to lie inside of the frame, so that all have one shape. Its border is
    the border of the frame, where the networks pad with zeros, or so far from the tile that nothing there reaches it.

    Arguments:
        size, tile: rows and columns of the latents of a frame and of a tile.
        corner: [2] the tile's first latent row and column.
    """

    def window(level: int, axis: int) -> tuple[Array, int]:
        scale, margin = levels[level]
        whole = scale * size[axis]
        length = min(scale * tile[axis] + 2 * margin, whole)
        return jnp.clip(scale * corner[axis] - margin, 0, whole - length), length

    def cut(frames: Array, level: int) -> Array:
        for axis in (0, 1):
            start, length = window(level, axis)
            if level > 0:
                start -= window(level - 1, axis)[0] * levels[level].scale // levels[level - 1].scale
            frames = lax.dynamic_slice_in_dim(frames, start, length, axis + 2)
        return frames

    return cut


def in_tiles(
    compute: Callable[[Cut], Float[Array, "1 t h w c"]],
    size: tuple[int, int],
    tile: tuple[int, int] | None,
    levels: Sequence[Level],
) -> Float[Array, "1 t h w c"]:
    """Whole frames put together from tiles that are computed one after the other; `size` is in latents."""
    if tile is None:
        return compute(whole_frame)
    tile = (min(tile[0], size[0]), min(tile[1], size[1]))
    rows, columns = (jnp.minimum(jnp.arange(0, s, t), s - t) for s, t in zip(size, tile, strict=True))
    corners = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)

    def compute_at(corner: Array) -> Array:
        return compute(cutter(levels, size, tile, corner))

    def body(frames: Array, corner: Array) -> tuple[Array, None]:
        row, column = corner * scale
        return lax.dynamic_update_slice(frames, compute_at(corner), (0, 0, row, column, 0)), None

    one = jax.eval_shape(compute_at, corners[0])
    scale = one.shape[2] // tile[0]
    frames = jnp.zeros((*one.shape[:2], size[0] * scale, size[1] * scale, one.shape[4]), one.dtype)
    return lax.scan(body, frames, corners)[0]


def in_time(compute: Callable[[Array, Stream], Array], frames: Array, size: int) -> Array:
    """The first frame, then groups of `size` frames, one after the other, each with the past of those before."""

    def step(carry: list[Array] | None, group: Array) -> tuple[list[Array], Array]:
        stream = Stream(carry)
        out = compute(group, stream)
        return stream.carry, out

    carry, first = step(None, frames[:, :1])
    groups = frames[:, 1:].reshape(frames.shape[0], -1, size, *frames.shape[2:]).swapaxes(0, 1)
    rest = lax.scan(step, carry, groups)[1].swapaxes(0, 1)
    return jnp.concatenate([first, rest.reshape(rest.shape[0], -1, *first.shape[2:])], axis=1)

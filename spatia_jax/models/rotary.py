"""Rotary positions of video tokens in time, rows and columns, with reference frames off the clip's grid."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BASE = 10_000.0


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, row and column: 44, 42, 42 of 128."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def rotary_table(num_references: int, num_frames: int, rows: int, columns: int, head_dim: int) -> np.ndarray:
    """Cosines and sines [2, (num_references + num_frames) * rows * columns, head_dim / 2] of every token's angles.

    Clip frames sit at times 0, 1, ... and rows 0 .. rows - 1. The references in front of them sit at times
    -num_references .. -1 and rows rows .. 2 rows - 1, so that they share neither time nor row with the clip (released
    code, spec section 2.5). Positions are static, so the angles are computed in float64 while tracing and rounded once.
    """
    times = np.arange(-num_references, num_frames)
    time, row, column = np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")
    row = np.where(time < 0, row + rows, row)
    angles = [
        position.reshape(-1, 1) / BASE ** (np.arange(0, width, 2, dtype=np.float64) / width)
        for position, width in zip((time, row, column), axis_widths(head_dim), strict=True)
    ]
    table = np.concatenate(angles, axis=-1)
    return np.stack([np.cos(table), np.sin(table)]).astype(np.float32)


def rotate(x: Float[Array, "b *l heads d"], table: Float[Array, "2 *l half"]) -> Float[Array, "b *l heads d"]:
    """Turn each adjacent channel pair (2i, 2i + 1) of every token by its angle; float32 inside, dtype kept.

    The partner of each channel comes by a product with 0, 1 and -1, which is exact. Taken apart, the pairs would lie
    across a TPU's lanes: XLA then lays out q and k anew several times (2 % of a training step, docs/aot.md).
    """
    cos, sin = jnp.repeat(table, 2, axis=-1)[..., None, :]
    swap = np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]])  # (even, odd) -> (-odd, even)
    partner = jnp.matmul(x, jnp.asarray(swap, x.dtype), precision="highest", preferred_element_type=jnp.float32)
    return (x.astype(jnp.float32) * cos + partner * sin).astype(x.dtype)

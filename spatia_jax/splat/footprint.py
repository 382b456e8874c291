"""What both rasterisers share: pixel cells of points, the offsets a disc can reach, and the order by depth."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

NONE = np.int32(2**31 - 1)  # the rank of no point: behind every point


def reach(radius: float, height: int, width: int) -> tuple[int, np.ndarray]:
    """How far a disc reaches from the pixel that holds its centre.

    Returns:
        The reach in pixels and the offsets (row, column) [o, 2] of all pixels whose centre the disc of some point in
        the cell can hit, nearest first. A hundredth of a pixel more than exact, so that rounding loses none.
    """
    radius_px = radius * min(height, width) / 2
    most = int(np.ceil(radius_px + 0.5))
    grid = np.stack(np.meshgrid(np.arange(-most, most + 1), np.arange(-most, most + 1), indexing="ij"), -1).reshape(-1, 2)
    nearest = np.maximum(np.abs(grid) - 0.5, 0.0)
    grid = grid[(nearest**2).sum(-1) < (radius_px + 1e-2) ** 2]
    grid = grid[np.argsort((grid**2).sum(-1), kind="stable")]
    return int(np.abs(grid).max()), grid


def cells(
    ndc: Float[Array, "n 3"], valid: Bool[Array, "n"], margin: int, height: int, width: int
) -> tuple[Int[Array, "n"], Int[Array, "n"], Bool[Array, "n"]]:
    """Row and column of the pixel nearest to every point, and whether its disc can touch the image (else 0, 0)."""
    half = min(height, width) / 2
    column = jnp.floor((width - 1) / 2 - ndc[:, 0] * half + 0.5)
    row = jnp.floor((height - 1) / 2 - ndc[:, 1] * half + 0.5)
    touches = valid & (ndc[:, 2] >= 0)  # comparisons with NaN are false
    touches &= (row >= -margin) & (row < height + margin) & (column >= -margin) & (column < width + margin)
    return jnp.where(touches, row, 0).astype(jnp.int32), jnp.where(touches, column, 0).astype(jnp.int32), touches


def depth_order(depth: Float[Array, "n"], keep: Bool[Array, "n"]) -> Int[Array, "n"]:
    """Indices of points by (depth, index), those not kept last.

    A stable argsort of non-negative floats, as a radix sort: each pass sorts words of (some bits of depth, position).
    XLA sorts one array of words on CPU seven times faster than it sorts keys with a payload. Depths of one scene
    differ in few of their bits, and the passes end where they agree.
    """
    n = depth.shape[0]
    position_bits = max(n - 1, 1).bit_length()
    digit_bits = 32 - position_bits
    bits = lax.bitcast_convert_type(depth + 0.0, jnp.uint32)  # + 0.0 makes -0.0 a 0.0
    lowest = jnp.min(bits, where=keep, initial=np.uint32(2**31))
    highest = jnp.max(bits, where=keep, initial=lowest) - lowest + 1
    key = jnp.where(keep, bits - lowest, highest)
    position = jnp.arange(n, dtype=jnp.uint32)

    def one_digit(state):
        shift, order = state
        digit = (key[order] >> shift) & np.uint32(2**digit_bits - 1)
        words = lax.sort((digit << position_bits) | position)
        return shift + np.uint32(digit_bits), order[(words & np.uint32(2**position_bits - 1)).astype(jnp.int32)]

    start = np.uint32(0), jnp.arange(n, dtype=jnp.int32)
    return lax.while_loop(lambda state: (highest >> state[0]) > 0, one_digit, start)[1]

"""What both rasterisers share: pixel cells of points, the offsets a disc can reach, and the order by depth."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.sorting import stable_argsort

NONE = np.int32(2**31 - 1)  # the rank of no point: behind every point


def reach(radius: float, height: int, width: int) -> tuple[int, np.ndarray]:
    """How far a disc reaches from the pixel that holds its centre.

    Returns:
        The reach in pixels and the offsets (row, column) [o, 2] of all pixels whose centre the disc of some point in
        the cell can hit, nearest first. A hundredth of a pixel more than exact, so that rounding loses none.
    """
    radius_px = radius * min(height, width) / 2
    most = int(np.ceil(radius_px + 0.5))
    grid = np.mgrid[-most : most + 1, -most : most + 1].reshape(2, -1).T
    nearest = np.maximum(np.abs(grid) - 0.5, 0.0)
    grid = grid[(nearest**2).sum(-1) < (radius_px + 1e-2) ** 2]
    grid = grid[np.argsort((grid**2).sum(-1), kind="stable")]
    return int(np.abs(grid).max()), grid


def covers(dx, dy, radius2) -> Bool[Array, "*s"]:
    """Whether a disc covers a place that is (dx, dy) from its centre, as float32 rounds when it does not fuse.

    A compiler that makes one fused multiply-add of `dx * dx + dy * dy` decides otherwise for a disc in 10^8; the
    minimum, which no distance on an image reaches, keeps it from that.
    """
    return jnp.minimum(dx * dx, np.float32(1e30)) + jnp.minimum(dy * dy, np.float32(1e30)) < radius2


def cells(
    ndc: Float[Array, "n 3"], valid: Bool[Array, " n"], margin: int, height: int, width: int
) -> tuple[Int[Array, " n"], Int[Array, " n"], Bool[Array, " n"]]:
    """Row and column of the pixel nearest to every point, and whether its disc can touch the image (else 0, 0)."""
    half = min(height, width) / 2
    column = jnp.floor((width - 1) / 2 - ndc[:, 0] * half + 0.5)
    row = jnp.floor((height - 1) / 2 - ndc[:, 1] * half + 0.5)
    touches = valid & (ndc[:, 2] >= 0)  # comparisons with NaN are false
    touches &= (row >= -margin) & (row < height + margin) & (column >= -margin) & (column < width + margin)
    return jnp.where(touches, row, 0).astype(jnp.int32), jnp.where(touches, column, 0).astype(jnp.int32), touches


def depth_order(depth: Float[Array, " n"], keep: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Indices of points by (depth, index), those not kept last. Kept depths are not negative."""
    # Ordered like the floats. abs makes -0.0 a 0.0; XLA would leave out "+ 0.0".
    bits = lax.bitcast_convert_type(jnp.abs(depth), jnp.uint32)
    lowest = jnp.min(bits, where=keep, initial=np.uint32(2**31))
    highest = jnp.max(bits, where=keep, initial=lowest)
    return stable_argsort(jnp.where(keep, bits - lowest, highest - lowest + 1))

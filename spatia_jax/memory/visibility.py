"""Which points a camera sees: an exact z-buffer with one pixel per point (spec/spatia.md 2.6)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from spatia_jax.cameras.camera import Cameras


def visibility(
    positions: Float[Array, "n 3"],
    valid: Bool[Array, " n"],
    cameras: Cameras,
    height: int,
    width: int,
    tolerance: float,
    *,
    truncate: bool = False,
) -> Bool[Array, "v n"]:
    """Whether each point is the nearest one in the pixel that it falls into, for v views one after another.

    Args:
        tolerance: how far behind the nearest a point may lie, in the units of the positions.
        truncate: count the row above and the column left of the image as part of it, as the released code does by
            rounding towards zero.
    """
    pixels = height * width

    def one_view(camera: Cameras) -> Bool[Array, " n"]:
        uv, depth = camera.project(positions, height, width)
        uv = uv + 0.5  # 0 at the edge of the image
        column, row = jnp.floor(uv[:, 0]), jnp.floor(uv[:, 1])
        lowest = -1 if truncate else 0
        inside = valid & (depth > 0) & (column >= lowest) & (column < width) & (row >= lowest) & (row < height)
        if truncate:
            inside &= (uv > -1.0).all(axis=-1)
        column, row = jnp.where(inside, column, 0), jnp.where(inside, row, 0)
        pixel = jnp.maximum(row, 0).astype(jnp.int32) * width + jnp.maximum(column, 0).astype(jnp.int32)
        nearest = jnp.full(pixels, jnp.inf).at[jnp.where(inside, pixel, pixels)].min(depth, mode="drop")
        return inside & (depth <= nearest[pixel] + tolerance)

    return lax.map(one_view, cameras)

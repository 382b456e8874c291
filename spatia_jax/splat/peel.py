"""The plain rasteriser: peel one layer of nearest points after another off the scene."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.splat.footprint import NONE, cells, covers, depth_order, reach
from spatia_jax.splat.projection import SplatConfig, pixel_centers


def peel(
    ndc: Float[Array, "n 3"],
    radius2: Float[Array, ...],
    valid: Bool[Array, " n"],
    height: int,
    width: int,
    config: SplatConfig,
) -> tuple[Int[Array, "h w k"], Bool[Array, "h w"]]:
    """Indices of the K nearest points whose disc covers each pixel, by (depth, index); -1 where there are fewer.

    Also a certificate for every pixel: there is nothing that could be missing.

    In each of K passes every point bids for every pixel in its reach with its rank by depth, and the lowest rank above
    that of the pass before wins: a scatter-min. The cost is K * points * offsets, wherever the points lie.
    """
    margin, offsets = reach(config.radius, height, width)
    row, column, touches = cells(ndc, valid, margin, height, width)
    order = depth_order(ndc[:, 2], touches)
    row, column, touches, x, y = row[order], column[order], touches[order], ndc[order, 0], ndc[order, 1]
    radius2 = radius2[order] if radius2.ndim else radius2
    rank = jnp.arange(ndc.shape[0], dtype=jnp.int32)
    center_x, center_y = map(jnp.asarray, pixel_centers(height, width))
    steps = jnp.asarray(offsets, jnp.int32)
    pixels = height * width

    def one_layer(previous, _):
        def one_offset(i, nearest):
            r, c = row + steps[i, 0], column + steps[i, 1]
            inside = touches & (r >= 0) & (r < height) & (c >= 0) & (c < width)
            pixel = jnp.where(inside, r * width + c, 0)
            dx, dy = x - center_x[jnp.clip(c, 0, width - 1)], y - center_y[jnp.clip(r, 0, height - 1)]
            bids = inside & covers(dx, dy, radius2) & (rank > previous[pixel])
            return nearest.at[jnp.where(bids, pixel, pixels)].min(rank, mode="drop")

        nearest = lax.fori_loop(0, len(offsets), one_offset, jnp.full(pixels, NONE, jnp.int32))
        return nearest, nearest

    start = jnp.full(pixels, -1, jnp.int32)
    _, layers = lax.scan(one_layer, start, length=config.points_per_pixel)
    indices = jnp.where(layers < NONE, order[jnp.minimum(layers, ndc.shape[0] - 1)], -1)
    return indices.T.reshape(height, width, config.points_per_pixel), jnp.ones((height, width), bool)

"""The fast rasteriser: dense layers of points, one per pixel cell, swept by a stencil until nothing can change.

Layer m holds, for each pixel cell, the rank by depth of the cell's m-th nearest point. A pixel's K best are kept by
inserting the layers one after another at every offset that a disc can reach: shifts, compares, min and max, with no
scatter per offset. Ranks in a cell ascend with m, so once the lowest rank of a layer around a pixel is behind that
pixel's K-th best, no later layer can change the pixel: a certificate. Strips of rows stop when all their pixels have
it and the sweep ends when all strips have stopped, so the result is exact for any scene, at a cost that follows how
deep the visible surfaces are stacked, hardly the number of points.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.splat.footprint import NONE, cells, depth_order, reach
from spatia_jax.splat.projection import SplatConfig, pixel_centers

_STRIP_ROWS = 16


def _lowest_around(rank: Int[Array, "H W"], margin: int) -> Int[Array, "h w"]:
    """The lowest rank in the square of cells within `margin` of each pixel."""
    height, width = rank.shape[0] - 2 * margin, rank.shape[1] - 2 * margin
    rows = rank[:height]
    for d in range(1, 2 * margin + 1):
        rows = jnp.minimum(rows, rank[d : d + height])
    lowest = rows[:, :width]
    for d in range(1, 2 * margin + 1):
        lowest = jnp.minimum(lowest, rows[:, d : d + width])
    return lowest


def stencil(
    ndc: Float[Array, "n 3"], valid: Bool[Array, " n"], height: int, width: int, config: SplatConfig
) -> Int[Array, "h w k"]:
    """Indices of the K nearest points whose disc covers each pixel, by (depth, index); -1 where there are fewer."""
    n = ndc.shape[0]
    margin, offsets = reach(config.radius, height, width)
    rows = min(_STRIP_ROWS, height)
    strips = -(-height // rows)
    padded = (strips * rows + 2 * margin, width + 2 * margin)
    row, column, touches = cells(ndc, valid, margin, height, width)
    order = depth_order(ndc[:, 2], touches)
    cell = jnp.where(touches, (row + margin) * padded[1] + column + margin, padded[0] * padded[1])[order]
    x, y = ndc[order, 0], ndc[order, 1]
    rank = jnp.arange(n, dtype=jnp.int32)
    steps = jnp.asarray(margin - offsets, jnp.int32)
    columns_at, rows_at = pixel_centers(height, width)
    center_x = jnp.asarray(columns_at)
    center_y = jnp.asarray(np.pad(rows_at, (0, strips * rows - height)).reshape(strips, rows, 1))
    infinite = padded[0] * padded[1]

    def next_layer(layer):
        later = rank > layer[jnp.minimum(cell, infinite - 1)]
        return jnp.full(infinite, NONE, jnp.int32).at[jnp.where(later, cell, infinite)].min(rank, mode="drop")

    def insert(best, layer):
        """best: K arrays [strips, rows, w]; layer: [cells]."""
        behind = jnp.minimum(layer, n - 1)
        grid = layer.reshape(padded), x[behind].reshape(padded), y[behind].reshape(padded)
        lowest = _lowest_around(grid[0], margin).reshape(strips, rows, width)
        open_strips = (lowest < best[-1]).any(axis=(1, 2))

        def one_strip(operands):
            strip, is_open, strip_y, strip_best = operands

            def one_offset(i, kept):
                at = (strip * rows + steps[i, 0], steps[i, 1])
                r, px, py = (lax.dynamic_slice(a, at, (rows, width)) for a in grid)
                dx, dy = px - center_x, py - strip_y
                bid = jnp.where(dx * dx + dy * dy < config.radius**2, r, NONE)
                # Every slot from the old slots only: a chain of slots would be recomputed by XLA once per slot.
                nearer = (jnp.full_like(bid, -1), *kept[:-1])
                return tuple(jnp.minimum(k, jnp.maximum(before, bid)) for before, k in zip(nearer, kept, strict=True))

            return lax.cond(is_open, lambda b: lax.fori_loop(0, len(offsets), one_offset, b), lambda b: b, strip_best)

        return lax.map(one_strip, (jnp.arange(strips), open_strips, center_y, best)), open_strips.any()

    def body(state):
        best, layer, _ = state
        best, is_open = insert(best, layer)
        return best, next_layer(layer), is_open

    best = tuple(jnp.full((strips, rows, width), NONE, jnp.int32) for _ in range(config.points_per_pixel))
    first = next_layer(jnp.full(infinite, -1, jnp.int32))
    best, _, _ = lax.while_loop(lambda state: state[2], body, (best, first, jnp.array(True)))
    ranks = jnp.stack(best, axis=-1).reshape(strips * rows, width, -1)[:height]
    return jnp.where(ranks < NONE, order[jnp.minimum(ranks, n - 1)], -1)

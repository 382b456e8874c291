"""The certified rasteriser in plain XLA: dense layers of points swept by a stencil, then the few pixels left over.

Layer m holds, for each pixel cell, the rank by depth of the cell's m-th nearest point. A pixel's K best are kept by
inserting layers at every offset that a disc can reach: shifts, compares, min and max. Ranks in a cell ascend with m,
so once the lowest rank of the next layer around a pixel is behind that pixel's K-th best, no later point can change the
pixel: a certificate. Two tiers (spec/splat.md R3): layers over the whole image, until all but a few pixels in a
thousand have theirs; these are gone on with by themselves, for as many layers as it takes, until none is left. So the
result is exact for any scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.sorting import stable_argsort
from spatia_jax.splat.footprint import NONE, cells, covers, depth_order, reach
from spatia_jax.splat.projection import SplatConfig, pixel_centers

_STRIP_ROWS = 16
_BATCH = 8192  # pixels of the second tier


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Cells:
    """Points in order of (cell, rank by depth), and where each cell of the padded grid begins.

    Attributes:
        cell, rank: [n].
        x, y, radius2: [n], in order of rank.
        first: [grid cells], n where a cell is empty.
    """

    cell: Array
    rank: Array
    x: Array
    y: Array
    radius2: Array
    first: Array

    def layer(self, cell: Int[Array, "*s"], m) -> Int[Array, "*s"]:
        """Rank of the m-th nearest point in some cells, NONE where there is none."""
        place = self.first[cell] + m
        at = jnp.minimum(place, len(self.cell) - 1)
        return jnp.where((place < len(self.cell)) & (self.cell[at] == cell), self.rank[at], NONE)

    def bids(self, rank: Int[Array, "*s"], center_x, center_y) -> Int[Array, "*s"]:
        """The ranks whose disc covers a place; NONE for the others."""
        at = jnp.minimum(rank, len(self.cell) - 1)
        dx, dy = self.x[at] - center_x, self.y[at] - center_y
        return jnp.where(covers(dx, dy, self.radius2[at]), rank, NONE)


def _sort_into_cells(ndc, radius2, valid, margin: int, padded: tuple[int, int], height: int, width: int):
    """The cells, and the points' indices in order of depth."""
    n = ndc.shape[0]
    row, column, touches = cells(ndc, valid, margin, height, width)
    order = depth_order(ndc[:, 2], touches)
    nowhere = padded[0] * padded[1]
    cell = jnp.where(touches, (row + margin) * padded[1] + column + margin, nowhere)[order]
    by_cell = stable_argsort(cell.astype(jnp.uint32))
    cell, rank = cell[by_cell], jnp.arange(n, dtype=jnp.int32)
    begins = jnp.concatenate([jnp.ones(1, bool), cell[1:] != cell[:-1]]) & (cell < nowhere)
    target = jnp.where(begins, cell, nowhere + rank)  # no two the same
    first = jnp.full(nowhere, n, jnp.int32).at[target].set(rank, mode="drop", unique_indices=True)
    return _Cells(cell, by_cell, ndc[order, 0], ndc[order, 1], jnp.broadcast_to(radius2, (n,))[order], first), order


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


def _insert_layer(best, layer, points: _Cells, offsets, margin: int, centers):
    """Inserts a layer [H, W] of the padded grid into K arrays [strips, rows, w]."""
    center_x, center_y = centers
    strips, rows, width = best[0].shape
    behind = jnp.minimum(layer, len(points.cell) - 1)
    grid = layer, points.x[behind], points.y[behind], points.radius2[behind]
    steps = jnp.asarray(margin - offsets, jnp.int32)
    is_open = (_lowest_around(layer, margin).reshape(strips, rows, width) < best[-1]).any(axis=(1, 2))

    def one_strip(operands):
        strip, is_open, strip_y, strip_best = operands

        def one_offset(i, kept):
            at = (strip * rows + steps[i, 0], steps[i, 1])
            rank, x, y, radius2 = (lax.dynamic_slice(a, at, (rows, width)) for a in grid)
            dx, dy = x - center_x, y - strip_y
            bid = jnp.where(covers(dx, dy, radius2), rank, NONE)
            # Every slot from the old slots only: a chain of slots would be recomputed by XLA once per slot.
            nearer = (jnp.full_like(bid, -1), *kept[:-1])
            return tuple(jnp.minimum(k, jnp.maximum(before, bid)) for before, k in zip(nearer, kept, strict=True))

        return lax.cond(is_open, lambda b: lax.fori_loop(0, len(offsets), one_offset, b), lambda b: b, strip_best)

    return lax.map(one_strip, (jnp.arange(strips), is_open, center_y, best))


def _finish(
    m: Int[Array, ""], pixel: Int[Array, " b"], best: Int[Array, "b k"], points: _Cells, offsets, margin: int, centers
):
    """The K best of some pixels whose first m layers are in."""
    width = len(centers[0])
    across = width + 2 * margin
    row, column = pixel // width, pixel % width
    around = (row[:, None] + margin - offsets[:, 0]) * across + column[:, None] + margin - offsets[:, 1]
    x, y = centers[0][column][:, None], centers[1][row][:, None]

    def body(state):
        m, best, rank = state
        best = jnp.sort(jnp.concatenate([best, points.bids(rank, x, y)], axis=1), axis=1, stable=False)
        best = best[:, : state[1].shape[1]]
        return m + 1, best, points.layer(around, m + 1)

    def is_open(state):
        _, best, rank = state
        return (rank.min(axis=1) < best[:, -1]).any()

    return lax.while_loop(is_open, body, (m, best, points.layer(around, m)))[1]


def stencil(
    ndc: Float[Array, "n 3"],
    radius2: Float[Array, ...],
    valid: Bool[Array, " n"],
    height: int,
    width: int,
    config: SplatConfig,
) -> tuple[Int[Array, "h w k"], Bool[Array, "h w"]]:
    """Indices of the K nearest points whose disc covers each pixel, by (depth, index); -1 where there are fewer.

    Also every pixel's certificate; all have one.
    """
    n, k = ndc.shape[0], config.points_per_pixel
    margin, offsets = reach(config.radius, height, width)
    rows = min(_STRIP_ROWS, height)
    strips = -(-height // rows)
    padded = (strips * rows + 2 * margin, width + 2 * margin)
    points, order = _sort_into_cells(ndc, radius2, valid, margin, padded, height, width)
    columns_at, rows_at = pixel_centers(height, width)
    rows_at = np.pad(rows_at, (0, strips * rows - height))
    every_cell = jnp.arange(padded[0] * padded[1], dtype=jnp.int32).reshape(padded)
    centers = jnp.asarray(columns_at), jnp.asarray(rows_at.reshape(strips, rows, 1))

    best = tuple(jnp.full((strips, rows, width), NONE, jnp.int32) for _ in range(k))
    pixels = strips * rows * width
    batch = min(_BATCH, -(-pixels // 16))

    def add_layer(state):
        m, layer, best, _ = state
        best = _insert_layer(best, layer, points, offsets, margin, centers)
        layer = points.layer(every_cell, m + 1)
        return m + 1, layer, best, _lowest_around(layer, margin).reshape(best[0].shape) >= best[-1]

    start = jnp.int32(0), points.layer(every_cell, 0), best, jnp.zeros(best[0].shape, bool)
    m, _, best, certified = lax.while_loop(lambda state: (~state[3]).sum() > batch, add_layer, start)
    # At most a batch of pixels is left, and all of them are finished.
    ranks, certified = jnp.stack(best, axis=-1).reshape(pixels, k), certified.reshape(pixels)
    pixel = jnp.nonzero(~certified, size=batch, fill_value=pixels)[0]
    at = jnp.minimum(pixel, pixels - 1)
    flat_centers = jnp.asarray(columns_at), jnp.asarray(rows_at)
    done = _finish(m, at, ranks[at], points, jnp.asarray(offsets, jnp.int32), margin, flat_centers)
    ranks, certified = ranks.at[pixel].set(done, mode="drop"), certified.at[pixel].set(True, mode="drop")
    indices = jnp.where(ranks < NONE, order[jnp.minimum(ranks, n - 1)], -1)
    return (
        indices.reshape(strips * rows, width, k)[:height],
        certified.reshape(strips * rows, width)[:height],
    )

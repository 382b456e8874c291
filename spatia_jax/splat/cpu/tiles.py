"""Points sorted into 16 x 16 pixel tiles, and the K nearest discs of every pixel of a tile.

A tile sees its points front to back, so a pixel's list is complete when it is full: nothing is ever moved in it, rows
whose pixels are all full are passed over, and a tile is left as soon as all of its are. A row of 16 pixels is tested in
one vector instruction or two.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spatia_jax.splat.cpu.ffi import compiled

SIZE = 16  # pixels along a side of a tile; the bit masks below have as many bits
_DIGIT_BITS, _DIGITS = 11, 3  # of the radix sort: 33 bits hold a depth
_SHORT = 48  # lists up to here are sorted by insertion


@intrinsic
def _row_hits(_, x, point_x, dy2, radius2):
    """Bits of the 16 pixels, their x from an address on, whose centre lies within a disc."""

    def generate(context, builder, signature, args):
        vector = ir.VectorType(ir.FloatType(), SIZE)

        def spread(scalar):
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), SIZE), [0] * SIZE)
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes)

        centers = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=4)
        dx = builder.fsub(spread(args[1]), centers)
        distance2 = builder.fadd(builder.fmul(dx, dx), spread(args[2]))
        bits = builder.bitcast(builder.fcmp_ordered("<", distance2, spread(args[3])), ir.IntType(SIZE))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(types.int64, types.float32, types.float32, types.float32), generate


@intrinsic
def _lowest_bit(_, bits):
    """Position of the lowest bit that is set."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@compiled
def pixel_box(x, y, radius2, height, width):
    """First and last column and row that a disc can cover, the last below the first if none."""
    half = np.float32(min(height, width)) * np.float32(0.5)
    reach = np.sqrt(radius2) * half + np.float32(0.02)  # more than exact, so that rounding loses no pixel
    u, v = np.float32(width - 1) * np.float32(0.5) - x * half, np.float32(height - 1) * np.float32(0.5) - y * half
    left, right, top, bottom = np.ceil(u - reach), np.floor(u + reach), np.ceil(v - reach), np.floor(v + reach)
    if not (left <= right and top <= bottom and right >= 0 and bottom >= 0 and left < width and top < height):
        return 0, -1, 0, -1  # NaN comes here too
    zero = np.float32(0)
    return (
        int(max(left, zero)), int(min(right, np.float32(width - 1))),
        int(max(top, zero)), int(min(bottom, np.float32(height - 1))),
    )  # fmt: skip


@compiled
def count_tiles(ndc, radius2, valid, first, last, height, width, counts):
    """Adds to `counts` [tiles] in how many lists the points first..last-1 are."""
    tiles_across, step = (width + SIZE - 1) // SIZE, 1 if radius2.shape[0] > 1 else 0
    for p in range(first, last):
        if valid[p] and ndc[p, 2] >= 0:
            left, right, top, bottom = pixel_box(ndc[p, 0], ndc[p, 1], radius2[p * step], height, width)
            if right >= left:
                for row in range(top // SIZE, bottom // SIZE + 1):
                    for column in range(left // SIZE, right // SIZE + 1):
                        counts[row * tiles_across + column] += 1


@compiled
def fill_tiles(ndc, radius2, valid, first, last, height, width, ends, points, keys):
    """Writes the points first..last-1 into their tiles' lists, where `ends` [tiles] says; moves `ends` on.

    A key is the bits of the depth, then the place in the list; places ascend with the points' indices.
    """
    tiles_across, step = (width + SIZE - 1) // SIZE, 1 if radius2.shape[0] > 1 else 0
    bits = ndc.view(np.uint32)
    for p in range(first, last):
        if valid[p] and ndc[p, 2] >= 0:
            left, right, top, bottom = pixel_box(ndc[p, 0], ndc[p, 1], radius2[p * step], height, width)
            if right >= left:
                depth = np.uint64(bits[p, 2] & np.uint32(0x7FFFFFFF)) << np.uint64(32)  # -0.0 is 0.0
                for row in range(top // SIZE, bottom // SIZE + 1):
                    for column in range(left // SIZE, right // SIZE + 1):
                        tile = row * tiles_across + column
                        place = ends[tile]
                        points[place] = p
                        keys[place] = depth | np.uint64(place)
                        ends[tile] = place + 1


@compiled
def sort_keys(keys, spare, histogram):
    """Sorts by the upper 32 bits, stably; the sorted array is one of the two that were given."""
    n = keys.shape[0]
    if n <= _SHORT:
        for i in range(1, n):
            key, j = keys[i], i - 1
            while j >= 0 and keys[j] > key:
                keys[j + 1] = keys[j]
                j -= 1
            keys[j + 1] = key
        return keys
    mask = np.uint64((1 << _DIGIT_BITS) - 1)
    histogram[:] = 0
    for i in range(n):
        for d in range(_DIGITS):
            histogram[d, (keys[i] >> np.uint64(32 + d * _DIGIT_BITS)) & mask] += 1
    source, target = keys, spare
    for d in range(_DIGITS):
        shift, counts = np.uint64(32 + d * _DIGIT_BITS), histogram[d]
        if counts[(source[0] >> shift) & mask] == n:
            continue  # all have the same digit
        total = 0
        for digit in range(counts.shape[0]):
            total, counts[digit] = total + counts[digit], total
        for i in range(n):
            digit = (source[i] >> shift) & mask
            target[counts[digit]] = source[i]
            counts[digit] += 1
        source, target = target, source
    return source


@compiled
def raster_tile(keys, points, ndc, radius2, features, width, centers_y, row0, columns, x_address, seen, lists):
    """Fills the lists of a tile's pixels.

    Args:
        keys: of the tile's points, sorted.
        points: of all tiles' lists, [entries].
        width: of the image.
        centers_y: NDC of the image's rows; row0: the tile's first.
        columns: how many columns of the tile are in the image.
        x_address: where the NDC of the tile's columns are.
        seen: [entries, 4 + c] is filled: x, y, z, squared radius and features of the points that were looked at.
        lists: (open [16], full [256], slots [256, k]) are filled: a bit for each pixel of a row that has less than k
            discs; how many each has; which entries of `seen`, nearest first.

    Returns:
        How many of the points were looked at.
    """
    open_bits, full, slots = lists
    height = centers_y.shape[0]
    rows, k, step = min(SIZE, height - row0), slots.shape[1], 1 if radius2.shape[0] > 1 else 0
    full[:] = 0
    open_bits[:] = (1 << columns) - 1
    open_rows = rows
    for e in range(keys.shape[0]):
        p = points[keys[e] & np.uint64(0xFFFFFFFF)]
        x, y, r2 = ndc[p, 0], ndc[p, 1], radius2[p * step]
        seen[e, 0], seen[e, 1], seen[e, 2], seen[e, 3] = x, y, ndc[p, 2], r2
        for c in range(features.shape[1]):
            seen[e, 4 + c] = features[p, c]
        _, _, top, bottom = pixel_box(x, y, r2, height, width)
        for r in range(max(top - row0, 0), min(bottom - row0 + 1, rows)):
            if open_bits[r] == 0:
                continue
            dy = y - centers_y[row0 + r]
            hits = _row_hits(x_address, x, dy * dy, r2) & open_bits[r]
            while hits != 0:
                bit = _lowest_bit(hits)
                hits &= hits - 1
                pixel = r * SIZE + bit
                slots[pixel, full[pixel]] = e
                full[pixel] += 1
                if full[pixel] == k:
                    open_bits[r] &= ~(1 << bit)
                    if open_bits[r] == 0:
                        open_rows -= 1
            if open_rows == 0:
                return e + 1
    return keys.shape[0]

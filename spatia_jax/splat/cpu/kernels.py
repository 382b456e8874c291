"""The renderer's XLA:CPU custom call: it chooses (indices), draws (a picture) or pulls (its gradients).

It is a few loops over all cores: points are counted into tiles and written to the tiles' lists in chunks, then tiles
are worked on a few at a time. Points keep their order in every list and nothing is added up by two threads, so results
do not depend on the number of cores.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from spatia_jax.splat.cpu import ffi
from spatia_jax.splat.cpu.shading import add_gradients, collect_gradients, write_indices, write_picture
from spatia_jax.splat.cpu.tiles import SIZE, count_tiles, fill_tiles, raster_tile, sort_keys

_TILES_AT_ONCE = 8
_CHUNK = 4096  # points; fewer are not worth a thread
# Words of a job: addresses and sizes that the loops' bodies read.
_NDC, _N, _RADIUS2, _RADII, _VALID, _FEATURES, _C, _X, _W, _Y, _H, _K = range(12)
_COUNTS, _CHUNKS, _TILES, _STARTS, _POINTS, _KEYS, _COLLECTED, _WHAT = range(12, 20)
_OUTPUTS, _COTANGENTS, _WORDS = 20, 23, 26
_CHOOSE, _DRAW, _PULL = 0, 1, 2  # what is wanted


@ffi.compiled
def floats(address, shape):
    return carray(ffi.pointer(address), shape, np.float32)


@ffi.compiled
def _cloud(job):
    """ndc [n, 3], squared radii [n or 1], valid [n], features [n, c]."""
    n = job[_N]
    return (
        floats(job[_NDC], (n, 3)), floats(job[_RADIUS2], (job[_RADII],)),
        carray(ffi.pointer(job[_VALID]), (n,), np.bool_), floats(job[_FEATURES], (n, job[_C])),
    )  # fmt: skip


@ffi.compiled
def _ends(job, i):
    """Of chunk i: how many points it has in each tile; from `_allot` on, where its next one goes."""
    return carray(ffi.pointer(job[_COUNTS]), (job[_CHUNKS], job[_TILES]), np.int64)[i]


@ffi.compiled
def _chunk(job, i):
    return i * job[_N] // job[_CHUNKS], (i + 1) * job[_N] // job[_CHUNKS]


@ffi.compiled
def _lists(job):
    """Points and keys of all tiles' lists, and where each tile's begins."""
    starts = carray(ffi.pointer(job[_STARTS]), (job[_TILES] + 1,), np.int64)
    total = starts[job[_TILES]]
    points = carray(ffi.pointer(job[_POINTS]), (total,), np.int32)
    return points, carray(ffi.pointer(job[_KEYS]), (total,), np.uint64), starts


@ffi.entry
def count_chunk(job_address, i):
    job = ffi.words(job_address)
    ndc, radius2, valid, _ = _cloud(job)
    first, last = _chunk(job, i)
    count_tiles(ndc, radius2, valid, first, last, job[_H], job[_W], _ends(job, i))
    return 0


@ffi.entry
def fill_chunk(job_address, i):
    job = ffi.words(job_address)
    ndc, radius2, valid, _ = _cloud(job)
    points, keys, _ = _lists(job)
    first, last = _chunk(job, i)
    fill_tiles(ndc, radius2, valid, first, last, job[_H], job[_W], _ends(job, i), points, keys)
    return 0


@ffi.entry
def work_tiles(job_address, group):
    """Lists of a few tiles, and what is wanted from them."""
    job = ffi.words(job_address)
    ndc, radius2, _, features = _cloud(job)
    points, all_keys, starts = _lists(job)
    height, width, k, channels = job[_H], job[_W], job[_K], job[_C]
    centers_x, centers_y = floats(job[_X], (width,)), floats(job[_Y], (height,))
    first, last, across = group * _TILES_AT_ONCE, min((group + 1) * _TILES_AT_ONCE, job[_TILES]), -(-width // SIZE)
    longest = 0
    for tile in range(first, last):
        longest = max(longest, starts[tile + 1] - starts[tile])
    lists = np.empty(SIZE, np.int64), np.empty(SIZE * SIZE, np.int32), np.empty((SIZE * SIZE, k), np.int32)
    spare, histogram = np.empty(longest, np.uint64), np.empty((3, 2048), np.int32)
    seen, passed = np.empty((longest, 4 + channels), np.float32), np.empty(k, np.float32)
    out = job[_OUTPUTS:_COTANGENTS]
    for tile in range(first, last):
        row0, column0 = tile // across * SIZE, tile % across * SIZE
        keys = sort_keys(all_keys[starts[tile] : starts[tile + 1]], spare[: starts[tile + 1] - starts[tile]], histogram)
        used = raster_tile(
            keys, points, ndc, radius2, features, width, centers_y, row0, min(SIZE, width - column0),
            job[_X] + 4 * column0, seen, lists,
        )  # fmt: skip
        if job[_WHAT] == _CHOOSE:
            indices = carray(ffi.pointer(out[0]), (height, width, k), np.int32)
            write_indices(keys, points, lists, row0, column0, indices)
        elif job[_WHAT] == _DRAW:
            color = floats(out[0], (height, width, channels))
            coverage, depth = floats(out[1], (height, width)), floats(out[2], (height, width))
            write_picture(seen, lists, centers_x, centers_y, row0, column0, color, coverage, depth)
        else:
            to = job[_COTANGENTS:_WORDS]
            cotangents = (
                floats(to[0], (height, width, channels)), floats(to[1], (height, width)), floats(to[2], (height, width))
            )  # fmt: skip
            gradients = np.zeros((used, 4 + channels), np.float32)
            add_gradients(seen, lists, centers_x, centers_y, row0, column0, cotangents, passed, gradients)
            collected = floats(job[_COLLECTED], (starts[job[_TILES]], 4 + channels))
            collected[starts[tile] : starts[tile + 1]] = 0
            collect_gradients(keys[:used], gradients, collected)
    return 0


@ffi.entry
def reduce_chunk(job_address, i):
    """Adds up, over the lists that a point is in, the gradients of the points of chunk i."""
    job = ffi.words(job_address)
    points, _, starts = _lists(job)
    channels, ends = job[_C], _ends(job, i)
    to_ndc, to_radius2 = floats(job[_OUTPUTS], (job[_N], 3)), floats(job[_OUTPUTS + 1], (job[_N],))
    to_features = floats(job[_OUTPUTS + 2], (job[_N], channels))
    collected = floats(job[_COLLECTED], (starts[job[_TILES]], 4 + channels))
    first, last = _chunk(job, i)
    to_ndc[first:last], to_radius2[first:last], to_features[first:last] = 0, 0, 0
    for tile in range(job[_TILES]):
        # The part of the tile's list that this chunk has written ends where the next chunk's begins.
        begin = starts[tile] if i == 0 else _ends(job, i - 1)[tile]
        for place in range(begin, ends[tile]):
            p = points[place]
            for j in range(3):
                to_ndc[p, j] += collected[place, j]
            to_radius2[p] += collected[place, 3]
            for j in range(channels):
                to_features[p, j] += collected[place, 4 + j]
    return 0


@ffi.compiled
def _job(frame):
    """Reads operands: ndc, radius2, valid, features, x and y of the pixels' centres, (what, width, k) and, for
    gradients, the cotangents of color, coverage and depth. The x are padded to whole tiles."""
    job = np.zeros(_WORDS, np.int64)
    job[_NDC], dims = ffi.argument(frame, 0)
    job[_N] = dims[0]
    job[_RADIUS2], dims = ffi.argument(frame, 1)
    job[_RADII] = dims[0]
    job[_VALID], _ = ffi.argument(frame, 2)
    job[_FEATURES], dims = ffi.argument(frame, 3)
    job[_C] = dims[1]
    job[_X], _ = ffi.argument(frame, 4)
    job[_Y], dims = ffi.argument(frame, 5)
    job[_H] = dims[0]
    address, _ = ffi.argument(frame, 6)
    wanted = carray(ffi.pointer(address), (3,), np.int32)
    job[_WHAT], job[_W], job[_K] = wanted[0], wanted[1], wanted[2]
    for i in range(1 if job[_WHAT] == _CHOOSE else 3):
        job[_OUTPUTS + i], _ = ffi.result(frame, i)
    if job[_WHAT] == _PULL:
        for i in range(3):
            job[_COTANGENTS + i], _ = ffi.argument(frame, 7 + i)
    job[_TILES] = (-(-job[_H] // SIZE)) * (-(-job[_W] // SIZE))
    job[_CHUNKS] = max(1, min(2 * ffi.num_threads(frame), job[_N] // _CHUNK))
    return job


@ffi.compiled
def _allot(job, starts):
    """Turns counts into places: tiles one after another, in a tile the chunks in order."""
    place = 0
    for tile in range(job[_TILES]):
        starts[tile] = place
        for i in range(job[_CHUNKS]):
            ends = _ends(job, i)
            place, ends[tile] = place + ends[tile], place
    starts[job[_TILES]] = place


@ffi.entry
def run(frame, table_address):
    """The custom call: bins the points, then works on the tiles."""
    helper, count, fill, tiles, reduce = ffi.words(table_address)[:5]
    job = _job(frame)
    address = job.ctypes.data
    counts = np.zeros((job[_CHUNKS], job[_TILES]), np.int64)
    starts = np.empty(job[_TILES] + 1, np.int64)
    job[_COUNTS], job[_STARTS] = counts.ctypes.data, starts.ctypes.data
    ffi.parallel_loop(frame, helper, count, address, job[_CHUNKS])
    _allot(job, starts)
    total, is_gradient = starts[job[_TILES]], job[_WHAT] == _PULL
    points, keys = np.empty(total, np.int32), np.empty(total, np.uint64)
    collected = np.empty((total if is_gradient else 0, 4 + job[_C]), np.float32)
    job[_POINTS], job[_KEYS], job[_COLLECTED] = points.ctypes.data, keys.ctypes.data, collected.ctypes.data
    ffi.parallel_loop(frame, helper, fill, address, job[_CHUNKS])
    ffi.parallel_loop(frame, helper, tiles, address, -(-job[_TILES] // _TILES_AT_ONCE))
    if is_gradient:
        ffi.parallel_loop(frame, helper, reduce, address, job[_CHUNKS])
    # Addresses are all that the job has of these arrays: they are to live until here.
    return counts.size + starts.size + points.size + keys.size + collected.size + job.size


def register() -> None:
    """Makes the call `spatia_splat` known to XLA. Compiles for some seconds the first time on a machine."""
    ffi.register("spatia_splat", run, (ffi.helper, count_chunk, fill_chunk, work_tiles, reduce_chunk))

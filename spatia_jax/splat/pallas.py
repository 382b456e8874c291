"""The renderer as a Pallas kernel: a tile of pixels at a time, its points front to back, until every pixel is full.

Points are sorted by (tile, depth, index), once for every tile that their disc can touch. A tile's counts, blend and
transmittance stay in registers; points are read as scalars, on TPU from chunks copied to SMEM. As the order is that of
the lists, nothing has to be inserted or moved, and a tile costs what its visible surfaces cost: no limit on how many
points lie in a cell, and exact by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.sorting import stable_argsort
from spatia_jax.splat.footprint import depth_order
from spatia_jax.splat.projection import SplatConfig, pixel_centers
from spatia_jax.splat.stencil import stencil

_CHUNK = 256  # points copied to SMEM at a time
_X, _Y, _RADIUS2, _INVERSE, _DEPTH, _FEATURES = range(6)  # rows of the table
_TILES = {"tpu": (16, 128), "gpu": (16, 16)}
_SPARE = 2  # places in the lists per point; a point lies in 1.6 lists of 16 x 128 pixels with the released disc


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lists:
    """Points by (tile, depth, index).

    Attributes:
        starts: [tiles + 1], where each tile's list begins.
        points: [places], which point.
    """

    starts: Int[Array, " t"]
    points: Int[Array, " m"]


def make_lists(ndc, radius2, valid, height: int, width: int, tile: tuple[int, int], config: SplatConfig):
    """The lists, and whether all points had room in them."""
    n, half = ndc.shape[0], min(height, width) / 2
    rows, columns = -(-height // tile[0]), -(-width // tile[1])
    reach = jnp.sqrt(radius2) * half + 0.02  # more than exact, so that rounding loses no pixel
    center = jnp.stack([(height - 1) / 2 - ndc[:, 1] * half, (width - 1) / 2 - ndc[:, 0] * half], axis=1)
    size = np.array([height, width], np.float32)
    low, high = jnp.ceil(center - reach[..., None]), jnp.floor(center + reach[..., None])
    touches = valid & (ndc[:, 2] >= 0) & ((low <= high) & (high >= 0) & (low < size)).all(axis=1)
    order = depth_order(ndc[:, 2], touches)
    low = jnp.where(touches[:, None], jnp.clip(low, 0, size - 1), 0).astype(jnp.int32)[order] // np.array(tile)
    high = jnp.where(touches[:, None], jnp.clip(high, 0, size - 1), -1).astype(jnp.int32)[order] // np.array(tile)
    most = [int(2 * (config.radius * half + 0.02)) // t + 2 for t in tile]  # tiles that a disc can touch, each way
    steps = np.stack(np.meshgrid(*map(np.arange, most), indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int32)
    at = low[:, None] + steps
    inside = (at <= high[:, None]).all(axis=-1)
    tiles = jnp.where(inside, at[..., 0] * columns + at[..., 1], rows * columns).reshape(-1)
    by_tile = stable_argsort(tiles.astype(jnp.uint32))
    starts = jnp.searchsorted(tiles[by_tile], jnp.arange(rows * columns + 1), side="left").astype(jnp.int32)
    places = -(-min(len(tiles), max(_SPARE * n, _CHUNK)) // _CHUNK) * _CHUNK
    by_tile = jnp.pad(by_tile, (0, max(places - len(by_tile), 0)))[:places]
    return Lists(starts, order[by_tile // len(steps)]), starts[-1] <= places


def _one_point(read, place, state, centers, k: int, what: str):
    """What a point does to the state of a tile's pixels: (counts, slots) or (counts, transmittance, depth, blend)."""
    count, *kept = state
    dx, dy = read(_X) - centers[0], read(_Y) - centers[1]
    distance2 = jnp.minimum(dx * dx, np.float32(1e30)) + jnp.minimum(dy * dy, np.float32(1e30))
    hit = (distance2 < read(_RADIUS2)) & (count < k)
    if what == "choose":
        kept = [jnp.where(hit & (count == i), place, slot) for i, slot in enumerate(kept)]
    else:
        passed, depth, *blend = kept
        alpha = jnp.where(hit, 1.0 - distance2 * read(_INVERSE), 0.0)
        weight = alpha * passed
        blend = [b + weight * read(_FEATURES + c) for c, b in enumerate(blend)]
        kept = [passed - weight, jnp.where(hit & (count == 0), read(_DEPTH), depth), *blend]
    return (count + hit.astype(jnp.int32), *kept)


def _start(centers, k: int, channels: int, what: str):
    """Pixels beyond the image have their centre at infinity, and are full."""
    count = jnp.where(centers[0] + centers[1] < np.float32(1e30), 0, k).astype(jnp.int32)
    if what == "choose":
        return (count, *(jnp.full_like(count, -1) for _ in range(k)))
    zero = jnp.zeros(count.shape, jnp.float32)
    return (count, zero + 1.0, zero, *(zero for _ in range(channels)))


def _sweep(chunk_reader, starts, tile, centers, out, k: int, channels: int, what: str):
    """Goes through a tile's list chunk by chunk until it ends or all pixels are full; writes the planes of `out`."""
    first, last = starts[tile], starts[tile + 1]

    def one_chunk(carry):
        chunk, state = carry
        read = chunk_reader(chunk)
        begin = chunk * _CHUNK

        def step(i, state):
            return _one_point(lambda row: read(row, i), begin + i, state, centers, k, what)

        low, high = jnp.maximum(first - begin, 0), jnp.minimum(last - begin, _CHUNK)
        return chunk + 1, lax.fori_loop(low, high, step, state)

    def goes_on(carry):
        chunk, state = carry
        return (chunk * _CHUNK < last) & (jnp.min(state[0]) < k)

    _, (_, *planes) = lax.while_loop(
        goes_on, one_chunk, (lax.div(first, jnp.int32(_CHUNK)), _start(centers, k, channels, what))
    )
    if what == "draw":
        planes[0] = 1.0 - planes[0]  # coverage
    for i, plane in enumerate(planes):
        out[i] = plane


def _tpu_kernel(starts, x, y, table, out, chunk_ref, semaphore, *, columns: int, k: int, channels: int, what: str):
    def chunk_reader(chunk):
        copy = pltpu.make_async_copy(table.at[chunk], chunk_ref, semaphore)
        copy.start()
        copy.wait()
        return lambda row, i: chunk_ref[row, i]

    tile = pl.program_id(0) * columns + pl.program_id(1)
    _sweep(chunk_reader, starts, tile, (x[...], y[...]), out, k, channels, what)


def _gpu_kernel(starts, x, y, table, out, *, columns: int, k: int, channels: int, what: str):
    def chunk_reader(chunk):
        return lambda row, i: table[chunk, row, i]

    tile = pl.program_id(0) * columns + pl.program_id(1)
    _sweep(chunk_reader, starts, tile, (x[...], y[...]), out, k, channels, what)


def _run(lists: Lists, ndc, radius2, features, height, width, k: int, what: str, device: str, interpret: bool):
    """The planes [p, h, w] that a kernel writes for every pixel."""
    tile = _TILES[device]
    rows, columns, channels = -(-height // tile[0]), -(-width // tile[1]), features.shape[1]
    at_x, at_y = (
        np.pad(centers, (0, -len(centers) % size), constant_values=np.inf)
        for centers, size in zip(pixel_centers(height, width), tile[::-1], strict=True)
    )
    shape = len(at_y), len(at_x)
    x, y = jnp.asarray(np.broadcast_to(at_x, shape)), jnp.asarray(np.broadcast_to(at_y[:, None], shape))
    radius2 = jnp.broadcast_to(radius2, ndc.shape[:1])
    table = jnp.stack([ndc[:, 0], ndc[:, 1], radius2, 1.0 / radius2, ndc[:, 2], *features.T])[:, lists.points]
    table = table.reshape(len(table), -1, _CHUNK).swapaxes(0, 1)
    planes = k if what == "choose" else 2 + channels
    out = jax.ShapeDtypeStruct((planes, *shape), jnp.int32 if what == "choose" else jnp.float32)
    options = {"columns": columns, "k": k, "channels": channels, "what": what}

    def pixels(i, j, *_):
        return i, j

    def block(i, j, *_):
        return 0, i, j

    if device == "gpu":
        whole = pl.BlockSpec(memory_space=pl.ANY)
        call = pl.pallas_call(
            partial(_gpu_kernel, **options), grid=(rows, columns), out_shape=out, interpret=interpret,
            compiler_params=pltriton.CompilerParams(num_warps=4),
            in_specs=[whole, pl.BlockSpec(tile, pixels), pl.BlockSpec(tile, pixels), whole],
            out_specs=pl.BlockSpec((planes, *tile), block),
        )  # fmt: skip
    else:
        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(rows, columns),
            in_specs=[pl.BlockSpec(tile, pixels), pl.BlockSpec(tile, pixels), pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=pl.BlockSpec((planes, *tile), block),
            scratch_shapes=[pltpu.SMEM((table.shape[1], _CHUNK), jnp.float32), pltpu.SemaphoreType.DMA],
        )  # fmt: skip
        call = pl.pallas_call(partial(_tpu_kernel, **options), grid_spec=grid, out_shape=out, interpret=interpret)
    return call(lists.starts, x, y, table)[:, :height, :width]


def choose(
    ndc: Float[Array, "n 3"],
    radius2: Float[Array, ...],
    valid: Bool[Array, " n"],
    height: int,
    width: int,
    config: SplatConfig,
    *,
    device: str = "tpu",
    interpret: bool = False,
) -> tuple[Int[Array, "h w k"], Bool[Array, "h w"]]:
    """Indices of the K nearest points over each pixel, and certificates, as from `stencil`.

    That takes over where the lists have no room, which takes discs far larger than the released ones.
    """
    lists, fits = make_lists(ndc, radius2, valid, height, width, _TILES[device], config)

    def with_kernel():
        places = _run(
            lists, ndc, radius2, jnp.zeros((len(ndc), 0)), height, width, config.points_per_pixel, "choose", device,
            interpret,
        )  # fmt: skip
        indices = jnp.where(places >= 0, lists.points[jnp.maximum(places, 0)], -1)
        return jnp.moveaxis(indices, 0, -1), jnp.ones((height, width), bool)

    return lax.cond(fits, with_kernel, lambda: stencil(ndc, radius2, valid, height, width, config))


def draw(
    ndc, radius2, valid, features, height: int, width: int, config: SplatConfig, fallback, *, device: str = "tpu",
    interpret: bool = False,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Blended features [h, w, c], coverage and depth [h, w]; `fallback()` where the lists have no room."""
    lists, fits = make_lists(ndc, radius2, valid, height, width, _TILES[device], config)

    def with_kernel():
        coverage, depth, *color = _run(
            lists, ndc, radius2, features, height, width, config.points_per_pixel, "draw", device, interpret
        )
        return jnp.stack(color, axis=-1) if color else jnp.zeros((height, width, 0)), coverage, depth

    return lax.cond(fits, with_kernel, fallback)

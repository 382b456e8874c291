"""The renderer on CPU: a custom call of XLA that numba compiles, on all cores (see `kernels.py`).

numba is loaded when the first program that needs it is traced.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from spatia_jax.splat.projection import pixel_centers

_TILE = 16  # tiles.SIZE, without numba


@cache
def _register() -> None:
    from spatia_jax.splat.cpu import kernels

    kernels.register()


def _call(what: int, results, cloud, height: int, width: int, k: int, *more: Array):
    _register()
    x, y = pixel_centers(height, width)
    # Whole rows of a tile are loaded, also of the last; no disc is there.
    x = np.pad(x, (0, -width % _TILE), constant_values=np.inf)
    wanted = jnp.array([what, width, k], jnp.int32)
    ndc, radius2, valid, features = cloud
    operands = ndc, jnp.atleast_1d(radius2), valid, features, jnp.asarray(x), jnp.asarray(y), wanted, *more
    return jax.ffi.ffi_call("spatia_splat", results, vmap_method="sequential")(*operands)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def choose(ndc, radius2, valid, height: int, width: int, k: int) -> Int[Array, "h w k"]:
    """Indices of the k nearest points whose disc covers each pixel, by (depth, index); -1 where there are fewer."""
    cloud = ndc, radius2, valid, jnp.zeros((ndc.shape[0], 0))
    return _call(0, jax.ShapeDtypeStruct((height, width, k), jnp.int32), cloud, height, width, k)


def draw(ndc, radius2, valid, features, height: int, width: int, k: int) -> tuple[Array, Array, Array]:
    """Blended features [h, w, c], coverage [h, w], depth of the nearest disc [h, w] (0 where none is)."""
    results = _floats(height, width, features.shape[1]), _floats(height, width), _floats(height, width)
    return tuple(_call(1, results, (ndc, radius2, valid, features), height, width, k))


def pull(ndc, radius2, valid, features, cotangents, height: int, width: int, k: int) -> tuple[Array, Array, Array]:
    """Gradients of `draw`: of ndc [n, 3], of every point's squared radius [n], of features [n, c]."""
    n = ndc.shape[0]
    results = _floats(n, 3), _floats(n), _floats(n, features.shape[1])
    return tuple(_call(2, results, (ndc, radius2, valid, features), height, width, k, *cotangents))

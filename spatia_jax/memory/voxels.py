"""Points grouped by voxel: exact, for any extent, with sorts instead of hashes."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.sorting import stable_argsort


def voxel_order(
    positions: Float[Array, "n 3"], usable: Bool[Array, " n"], voxel_size: float | Array
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Sort points by voxel.

    Returns:
        An order of the points in which those of one voxel are neighbours (earlier ones first) and unusable ones last;
        and, in this order, the running number of each point's voxel, n for unusable points.
    """
    n = usable.shape[0]
    voxels = jnp.floor(positions / voxel_size)
    usable = usable & (jnp.abs(voxels) < 2**30).all(axis=-1)  # false for NaN
    voxels = jnp.where(usable[:, None], voxels, 0).astype(jnp.int32)
    lowest = jnp.min(voxels, axis=0, where=usable[:, None], initial=2**30)
    key = jnp.where(usable[:, None], voxels - lowest, 0).astype(jnp.uint32)

    def sort_by(order, digit):
        return order[stable_argsort(digit[order])], None

    digits = jnp.concatenate([key.T, ~usable[None]]).astype(jnp.uint32)
    order, _ = lax.scan(sort_by, jnp.arange(n, dtype=jnp.int32), digits)

    key, usable = key[order], usable[order]
    begins = (key[1:] != key[:-1]).any(axis=-1)
    number = jnp.cumsum(jnp.concatenate([jnp.zeros(min(n, 1), jnp.int32), begins.astype(jnp.int32)]), dtype=jnp.int32)
    return order, jnp.where(usable, number, n)


def number_voxels(positions: Float[Array, "n 3"], voxel_size: float) -> Int[Array, " n"]:
    """The number of each point's voxel, below n. Points that are not finite get n."""
    order, number = voxel_order(positions, jnp.ones(positions.shape[0], bool), voxel_size)
    return jnp.zeros_like(number).at[order].set(number)

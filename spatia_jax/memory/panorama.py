"""What points show in all directions around a camera: a coarse picture that forgets nothing behind the camera's back.

Rows are elevations above the horizon of the world (its y axis points down), columns are azimuths from the camera's
heading; cells are square angles, so the picture covers a band about the horizon.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spatia_jax.cameras import Cameras

_SAME_SURFACE = 1.1  # a point this many times as far as the nearest one of its cell still belongs to what is seen
_THIN = 4  # one point in so many is looked at


def panoramas(
    positions: Float[Array, "n 3"],
    colors: Float[Array, "n 3"],
    valid: Bool[Array, " n"],
    cameras: Cameras,
    size: tuple[int, int],
) -> Float[Array, "v r c 5"]:
    """Mean colour of the nearest surface in each cell around v cameras; whether there is one; 1 / (1 + its distance).

    All in [0, 1], and 0 where nothing is. A share of the points is looked at: cells are large.
    """
    positions, colors, valid = (leaf[::_THIN] for leaf in (positions, colors, valid))
    rows, columns = size
    cells = rows * columns

    def around(camera: Cameras) -> Float[Array, "r c 5"]:
        offset = positions - camera.centers
        row, column = _cells(offset, camera, size)
        inside = valid & (row > -0.5) & (row < rows - 0.5) & jnp.isfinite(offset).all(-1)
        cell = jnp.round(row).astype(jnp.int32) * columns + jnp.round(column).astype(jnp.int32) % columns
        cell = jnp.where(inside, cell, cells)
        distance = jnp.maximum(jnp.linalg.norm(jnp.where(inside[:, None], offset, 1.0), axis=-1), 1e-3)
        nearest = jax.ops.segment_min(distance, cell, cells + 1)
        shows = inside & (distance < _SAME_SURFACE * nearest[cell])
        values = jnp.concatenate([colors, jnp.ones_like(colors[:, :1]), 1 / (1 + distance[:, None])], axis=-1)
        values = jnp.where(shows[:, None], values, 0.0)
        total = jax.ops.segment_sum(values, cell, cells + 1)[:-1]
        return (total / jnp.maximum(total[:, 3:4], 1.0)).reshape(rows, columns, 5)

    return jax.lax.map(around, cameras)


def places(cameras: Cameras, height: int, width: int, size: tuple[int, int]) -> Float[Array, "v h w 2"]:
    """Row and column of the panorama (not whole) in which each pixel of v cameras looks."""
    rays = jnp.einsum(
        "vji,vhwj->vhwi", cameras.rotation, cameras.rays(height, width), precision=jax.lax.Precision.HIGHEST
    )
    return jax.vmap(lambda ray, camera: jnp.stack(_cells(ray, camera, size), axis=-1))(rays, cameras)


def _cells(
    direction: Float[Array, "*n 3"], camera: Cameras, size: tuple[int, int]
) -> tuple[Float[Array, " *n"], Float[Array, " *n"]]:
    """Row and column of directions; the heading lies in the middle, whole numbers are the middles of cells."""
    rows, columns = size
    per_cell = 2 * jnp.pi / columns
    ahead = camera.rotation[2]
    azimuth = jnp.arctan2(direction[..., 0], direction[..., 2]) - jnp.arctan2(ahead[0], ahead[2])
    azimuth = (azimuth + jnp.pi) % (2 * jnp.pi) - jnp.pi
    below = jnp.arctan2(direction[..., 1], jnp.hypot(direction[..., 0], direction[..., 2]) + 1e-9)
    return below / per_cell + (rows - 1) / 2, azimuth / per_cell + (columns - 1) / 2

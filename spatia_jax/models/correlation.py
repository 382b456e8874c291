"""Correlation of feature maps, and its lookup around where pixels are thought to have moved (RAFT, arXiv 2003.12039).

The correlation of pixel u of frame i with every pixel of frame j, averaged over 1, 2, 4, ... pixels of the latter, is a
pyramid; the lookup reads from each level a window around the current coordinates. Averaging is linear, so that the
pyramid can be taken of the features of frame j instead: `CorrelationFeatures` keeps only those and computes the values
of a window when it is asked for, in memory that does not grow with (h w)^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_SCALE = 16.0  # what DROID-SLAM divides the products by: 4 for either factor


class Correlation(Protocol):
    """What the update operator needs of a correlation."""

    def lookup(self, coords: Float[Array, "e h w 2"], radius: int) -> Float[Array, "e h w c"]:
        """Bilinear samples around `coords` at every level, zero outside the image.

        Args:
            coords: [e, h, w, 2] pixels (u, v) of the target frames, for every pixel of the source frames.
            radius: of the window, in pixels of each level.

        Returns:
            c = levels (2 radius + 1)^2 channels; the level is outermost, then the offset in u, then that in v.
        """
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CorrelationVolume:
    """All products of e pairs of frames: levels of [e, h, w, y, x], y and x halved (and rounded down) at each."""

    levels: tuple[Array, ...]

    def lookup(self, coords: Float[Array, "e h w 2"], radius: int) -> Float[Array, "e h w c"]:
        def read(volume: Float[Array, "e h w y x"], corner: Int[Array, "e h w 2"]) -> Float[Array, "e h w k k"]:
            rows, columns = volume.shape[-2:]
            at, inside = _window(corner, 2 * radius + 2, rows, columns)
            flat = volume.reshape(*volume.shape[:3], rows * columns)
            taken = jnp.take_along_axis(flat, at.reshape(*at.shape[:3], -1), axis=-1)
            return jnp.where(inside, taken.reshape(at.shape), 0.0)

        return _lookup(self.levels, coords, radius, read)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CorrelationFeatures:
    """The same without the products: they are made on the fly, edge after edge.

    Attributes:
        features: [n, h, w, c] of all frames.
        levels: the same averaged, [n, y, x, c], the full resolution first.
        ii, jj: [e] source and target frame of every edge.
    """

    features: Array
    levels: tuple[Array, ...]
    ii: Array
    jj: Array

    def lookup(self, coords: Float[Array, "e h w 2"], radius: int) -> Float[Array, "e h w c"]:
        def one_edge(edge):
            i, j, coords = edge

            def read(target: Float[Array, "y x c"], corner: Int[Array, "1 h w 2"]) -> Float[Array, "1 h w k k"]:
                rows, columns, channels = target.shape
                at, inside = _window(corner, 2 * radius + 2, rows, columns)
                near = target.reshape(rows * columns, channels)[at[0]]
                products = jnp.einsum("hwc,hwklc->hwkl", self.features[i], near) / _SCALE
                return jnp.where(inside, products[None], 0.0)

            return _lookup(tuple(level[j] for level in self.levels), coords[None], radius, read)[0]

        return jax.lax.map(one_edge, (self.ii, self.jj, coords))


def correlation_volume(
    features: Float[Array, "n h w c"], ii: Int[Array, " e"], jj: Int[Array, " e"], num_levels: int
) -> CorrelationVolume:
    """Products of all pixels of frames ii with all of frames jj; e (h w)^2 floats for the first level alone."""
    products = jnp.einsum("ehwc,eyxc->ehwyx", features[ii], features[jj]) / _SCALE
    levels = [products]
    for _ in range(num_levels - 1):
        levels.append(_halve(levels[-1], (3, 4)))
    return CorrelationVolume(tuple(levels))


def correlation_features(
    features: Float[Array, "n h w c"], ii: Int[Array, " e"], jj: Int[Array, " e"], num_levels: int
) -> CorrelationFeatures:
    """What the lookup on the fly needs."""
    levels = [features]
    for _ in range(num_levels - 1):
        levels.append(_halve(levels[-1], (1, 2)))
    return CorrelationFeatures(features, tuple(levels), ii, jj)


def _halve(values: Array, axes: tuple[int, int]) -> Array:
    """Means of 2 x 2 along two neighbouring axes; an odd last row or column is left out."""
    y, x = axes
    rows, columns = values.shape[y] // 2, values.shape[x] // 2
    even = jax.lax.slice_in_dim(jax.lax.slice_in_dim(values, 0, 2 * rows, axis=y), 0, 2 * columns, axis=x)
    shape = (*values.shape[:y], rows, 2, columns, 2, *values.shape[x + 1 :])
    return even.reshape(shape).mean((y + 1, y + 3))


def _window(corner: Int[Array, "*p 2"], side: int, rows: int, columns: int) -> tuple[Int[Array, "*p k k"], Array]:
    """Flat indices of the window whose first pixel is `corner`, u outermost, and which of them lie on the image."""
    offsets = jnp.arange(side)
    u = corner[..., 0, None, None] + offsets[:, None]
    v = corner[..., 1, None, None] + offsets[None, :]
    inside = (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
    return jnp.clip(v, 0, rows - 1) * columns + jnp.clip(u, 0, columns - 1), inside


def _lookup(levels: Sequence[Array], coords: Float[Array, "e h w 2"], radius: int, read) -> Float[Array, "e h w c"]:
    """All samples of a window share their fractions: (k + 1)^2 neighbours give k^2 samples."""
    channels = []
    for level, values in enumerate(levels):
        scaled = coords / 2**level
        # Far outside is outside; the bound keeps the integers from overflowing.
        corner = jnp.clip(jnp.floor(scaled), -(2.0**20), 2.0**20)
        a, b = jnp.moveaxis((scaled - corner).clip(0, 1), -1, 0)[..., None, None]
        near = read(values, corner.astype(jnp.int32) - radius)
        along_u = (1 - a) * near[..., :-1, :] + a * near[..., 1:, :]
        samples = (1 - b) * along_u[..., :-1] + b * along_u[..., 1:]
        channels.append(samples.reshape(*samples.shape[:-2], -1))
    return jnp.concatenate(channels, axis=-1)

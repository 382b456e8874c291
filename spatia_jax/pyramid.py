"""Pictures with holes: pull-push over an image pyramid spreads what is known at some pixels smoothly over all.

Gortler et al., The Lumigraph, 1996, section 3.4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SMOOTHNESS = 0.01  # of filled pictures: 0.1 and 0.001 are 0.1 and 0.03 dB worse in holes


def pull_push(
    weighted: Float[Array, "*b h w"], weights: Float[Array, "*b h w"], smoothness: float
) -> Float[Array, "*b h w"]:
    """Weighted means at ever coarser levels (pull), then back, each level completed from the coarser one (push).

    Args:
        weighted: values times weights, 0 where nothing is known; finite.
        weights: >= 0.
        smoothness: weight of the coarser level's value at each pixel. Small: known values stay nearly as they are and
            reach far. The coarsest level is completed with 0, so the field fades to 0 far from all that is known.
    """
    height, width = weights.shape[-2:]
    depth = max(0, min(height, width).bit_length() - 2)
    padding = [(0, 0)] * (weights.ndim - 2) + [(0, -height % 2**depth), (0, -width % 2**depth)]
    levels = [(jnp.pad(weighted, padding), jnp.pad(weights, padding))]
    for _ in range(depth):
        total, weight = levels[-1]
        levels.append((_halve(total), _halve(weight)))
    field = jnp.zeros_like(levels[-1][0])
    for total, weight in reversed(levels):
        coarser = jax.image.resize(field, total.shape, "linear")
        field = (total + smoothness * coarser) / (weight + smoothness)
    return field[..., :height, :width]


def fill_holes(
    color: Float[Array, "*b h w c"], coverage: Float[Array, "*b h w"], *, empty: float = 0.5
) -> Float[Array, "*b h w c"]:
    """Images without holes: pull-push, towards the mean colour far from all that is known. Known pixels stay.

    A prior for painting, not a picture.

    Args:
        color: premultiplied by coverage, as `shade` gives it: 0 in holes.
        coverage: 0 in holes to 1.
        empty: the value everywhere in an image of which nothing is known.
    """
    known = coverage[..., None]
    total = known.sum((-3, -2), keepdims=True)
    mean = jnp.where(total > 0, color.sum((-3, -2), keepdims=True) / jnp.maximum(total, 1e-6), empty)
    deviation = jnp.moveaxis(color - known * mean, -1, -3)
    spread = pull_push(deviation, jnp.broadcast_to(jnp.moveaxis(known, -1, -3), deviation.shape), _SMOOTHNESS)
    return color + (1 - known) * (mean + jnp.moveaxis(spread, -3, -1))


def shrink(
    color: Float[Array, "*b h w c"], coverage: Float[Array, "*b h w"], factor: int
) -> tuple[Float[Array, "*b p q c"], Float[Array, "*b p q"]]:
    """Colour, premultiplied, and coverage at 1 / factor of the size: means of squares."""

    def means(x: Array) -> Array:
        *lead, height, width, channels = x.shape
        squares = x.reshape(*lead, height // factor, factor, width // factor, factor, channels)
        return squares.mean((-4, -2))

    return means(color), means(coverage[..., None])[..., 0]


def _halve(images: Float[Array, "*b h w"]) -> Float[Array, "*b y x"]:
    """Half the size, with the taps 1 3 3 1: cells overlap, so that a value reaches its neighbour at every level."""
    for axis in (-2, -1):
        x = jnp.moveaxis(images, axis, 0)
        x = jnp.pad(x, [(1, 1)] + [(0, 0)] * (x.ndim - 1))
        x = (x[:-3:2] + 3 * x[1:-2:2] + 3 * x[2:-1:2] + x[3::2]) / 8
        images = jnp.moveaxis(x, 0, axis)
    return images

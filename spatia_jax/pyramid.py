"""Pull-push over an image pyramid: values known at some pixels, spread smoothly over all.

Gortler et al., The Lumigraph, 1996, section 3.4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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


def _halve(images: Float[Array, "*b h w"]) -> Float[Array, "*b y x"]:
    """Half the size, with the taps 1 3 3 1: cells overlap, so that a value reaches its neighbour at every level."""
    for axis in (-2, -1):
        x = jnp.moveaxis(images, axis, 0)
        x = jnp.pad(x, [(1, 1)] + [(0, 0)] * (x.ndim - 1))
        x = (x[:-3:2] + 3 * x[1:-2:2] + 3 * x[2:-1:2] + x[3::2]) / 8
        images = jnp.moveaxis(x, 0, axis)
    return images

"""Holes of a projection filled from their surroundings: pull-push over an image pyramid.

Pull: each coarser level is the mean of the known pixels of the finer one. Push: what is unknown at a level is taken
from the coarser one, interpolated. Every hole gets the smoothest of its neighbourhoods that knows anything
(Gortler et al., The Lumigraph, 1996, section 3.4). A prior for painting, not a picture: known pixels stay as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def fill_holes(
    color: Float[Array, "*b h w c"], coverage: Float[Array, "*b h w"], *, empty: float = 0.5
) -> Float[Array, "*b h w c"]:
    """Images without holes.

    Args:
        color: premultiplied by coverage, as `shade` gives it: 0 in holes.
        coverage: 0 in holes to 1.
        empty: the value everywhere in an image of which nothing is known.
    """
    height, width = color.shape[-3:-1]
    if height == 1 and width == 1:
        known = coverage[..., None]
        return color + (1 - known) * jnp.where(known > 0, color / jnp.maximum(known, 1e-6), empty)
    pooled, known = _halve(color), _halve(coverage[..., None])
    whole = jnp.minimum(4.0 * known, 1.0)  # a coarse pixel that one fine one tells about is known
    pooled = pooled * (whole / jnp.maximum(known, 1e-6))
    coarse = fill_holes(pooled, whole[..., 0], empty=empty)
    shape = (*coarse.shape[:-3], 2 * coarse.shape[-3], 2 * coarse.shape[-2], coarse.shape[-1])
    pushed = jax.image.resize(coarse, shape, "linear")[..., :height, :width, :]
    return color + (1 - coverage[..., None]) * pushed


def _halve(x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
    """Means of 2 x 2 pixels; an odd last row or column is repeated."""
    height, width = x.shape[-3:-1]
    pad = [(0, 0)] * (x.ndim - 3) + [(0, height % 2), (0, width % 2), (0, 0)]
    x = jnp.pad(x, pad, mode="edge")
    *lead, height, width, channels = x.shape
    return x.reshape(*lead, height // 2, 2, width // 2, 2, channels).mean((-4, -2))

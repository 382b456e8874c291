"""Holes of a projection, continued from what surrounds them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from spatia_jax.pyramid import pull_push

_SMOOTHNESS = 0.01


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

"""Classifier-free guidance: out = negative + scale (positive - negative).

The weights of the two passes add up to one, and both parametrisations of flow.py are affine in the network's output,
so it makes no difference whether the outputs, the velocities or the estimates of x0 are mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spatia_jax.diffusion.samplers import Denoise


def guided(
    denoise: Callable[[Array, Array, Any], Array],
    positive: Any,
    negative: Any,
    scale: float,
    *,
    batched: bool = False,
) -> Denoise:
    """Close a network over its text, with guidance.

    Args:
        denoise: (latents, timestep, conditions) -> output.
        positive: conditions of the pass that is wanted: a pytree of arrays with a leading batch axis.
        negative: the same for the pass to move away from.
        scale: static; 1 means no guidance, and costs one pass.
        batched: run both passes as one batch of twice the size: faster where the device is not yet full, at twice the
            memory for activations.
    """
    if scale == 1.0:
        return lambda latents, timestep: denoise(latents, timestep, positive)

    def sequential(latents: Array, timestep: Array) -> Array:
        low = denoise(latents, timestep, negative)
        return low + scale * (denoise(latents, timestep, positive) - low)

    def together(latents: Array, timestep: Array) -> Array:
        both = jax.tree.map(lambda low, high: jnp.concatenate([low, high]), negative, positive)
        low, high = jnp.split(denoise(jnp.concatenate([latents, latents]), timestep, both), 2)
        return low + scale * (high - low)

    return together if batched else sequential

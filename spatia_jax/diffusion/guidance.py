"""Classifier-free guidance: out = negative + scale (positive - negative).

The weights of the two passes add up to one, and both parametrisations of flow.py are affine in the network's output,
so it makes no difference whether outputs, velocities or estimates of x0 are mixed.
"""

from __future__ import annotations

from jaxtyping import Array

from spatia_jax.diffusion.samplers import Denoiser


def guided(positive: Denoiser, negative: Denoiser, scale: float) -> Denoiser:
    """Move away from what `negative` says.

    Args:
        positive: the network under the wanted conditions.
        negative: the same network under the conditions to move away from.
        scale: static; 1 means no guidance, and costs one pass instead of two.
    """
    if scale == 1.0:
        return positive

    def denoise(latents: Array, timestep: Array) -> Array:
        low = negative(latents, timestep)
        return low + scale * (positive(latents, timestep) - low)

    return denoise

"""What the depth network is trained with: scale-invariant log error plus a multi-scale gradient term."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_EPS = 1e-3  # metres; keeps the logarithm finite


def depth_loss(
    predicted: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    *,
    variance_focus: float = 0.85,
    gradient_weight: float = 0.5,
    num_scales: int = 4,
) -> Float[Array, ""]:
    """Mean loss over the batch.

    Per image, with e = log(predicted) - log(target) over the valid pixels: sqrt(mean(e^2) - variance_focus *
    mean(e)^2) (Eigen et al. 2014; with a focus below one the metric scale is still learned), plus the mean absolute
    difference of e between neighbours at `num_scales` dyadic resolutions (MiDaS, arXiv 1907.01341), which keeps edges.

    Args:
        predicted, target: z-depth, metres.
        valid: where the target is known. An image without valid pixels contributes nothing.
    """
    valid = valid & jnp.isfinite(target) & (target > _EPS)
    target = jnp.where(valid, target, 1.0)
    error = jnp.where(valid, jnp.log(jnp.maximum(predicted, _EPS)) - jnp.log(target), 0.0)
    count = jnp.maximum(valid.sum((1, 2)), 1)
    mean = error.sum((1, 2)) / count
    spread = jnp.square(error).sum((1, 2)) / count - variance_focus * jnp.square(mean)
    scale_invariant = jnp.sqrt(jnp.maximum(spread, 0) + 1e-6)
    gradient = sum(_gradient(error[:, ::step, ::step], valid[:, ::step, ::step]) for step in _steps(num_scales))
    return jnp.mean(scale_invariant + gradient_weight * gradient / num_scales)


def _steps(num_scales: int) -> list[int]:
    return [2**scale for scale in range(num_scales)]


def _gradient(error: jax.Array, valid: jax.Array) -> jax.Array:
    """[b]: mean |difference| of the error between valid horizontal and vertical neighbours."""
    across = jnp.where(valid[:, :, 1:] & valid[:, :, :-1], jnp.abs(jnp.diff(error, axis=2)), 0.0).sum((1, 2))
    down = jnp.where(valid[:, 1:] & valid[:, :-1], jnp.abs(jnp.diff(error, axis=1)), 0.0).sum((1, 2))
    return (across + down) / jnp.maximum(valid.sum((1, 2)), 1)

"""Brings the depth prior of a clip to the map's own depth.

In each frame 1 / z_map = scale / z_prior + shift, fitted over the pixels that the map covers. The fit is hierarchical,
and each stage is drawn to the one before with the strength of a few pixels: the identity, the clip's median scale, the
clip's scale and shift, those of the frame. So a frame that barely overlaps the map follows its clip, and a clip without
any overlap keeps the prior as it is, without a branch. What the two numbers cannot explain is a smooth field of log
depth, carried from covered pixels into the holes next to them, so that new geometry joins the old without a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spatia_jax.pyramid import pull_push

_MIN_SIGMA = 0.02  # relative depth error that no depth prior beats; keeps the robust weights finite
_MAX_RATIO = 20.0  # a fit beyond this is no alignment but a broken prior
_SIGN = np.uint32(1 << 31)
_FIELD_SMOOTHNESS = 0.01  # weight of the coarser level in the correction field, in shares of a covered pixel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fit:
    """1 / z_map = scale / z_prior + shift; any leading shape. The shift is in 1 / length."""

    scale: Array
    shift: Array

    def apply(self, depth: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Aligned depth, never further than `_MAX_RATIO` from where scale alone would put it."""
        scaled = depth / self.scale
        inverse = self.scale / depth + self.shift
        return 1 / jnp.clip(inverse, 1 / (_MAX_RATIO * scaled), _MAX_RATIO / scaled)


def fit_clip(
    depth: Float[Array, "t h w"],
    map_depth: Float[Array, "t h w"],
    valid: Bool[Array, "t h w"],
    *,
    iterations: int,
    prior_share: float,
) -> Fit:
    """Robust scale and shift of every frame.

    Args:
        depth, map_depth: positive z-depth of the prior and of the map, finite everywhere.
        valid: where both are meant.
        iterations: of iteratively reweighted least squares, for the clip and again for the frames.
        prior_share: the share of a frame's pixels whose pull a fit's prior has.

    Returns:
        Fit with leading shape [t].
    """
    num_frames = depth.shape[0]
    x, y, valid = (array.reshape(num_frames, -1) for array in (1 / depth, 1 / map_depth, valid))
    strength = prior_share * x.shape[1]
    certainty = valid.sum() / (valid.sum() + strength)
    ratio = jnp.exp(certainty * masked_median(jnp.log(y / x).ravel(), valid.ravel()))
    scale_only = Fit(jnp.clip(ratio, 1 / _MAX_RATIO, _MAX_RATIO), jnp.zeros(()))
    clip = _robust_fit(x.ravel(), y.ravel(), valid.ravel(), scale_only, strength, iterations)
    return jax.vmap(lambda x, y, valid: _robust_fit(x, y, valid, clip, strength, iterations))(x, y, valid)


def correction_field(
    residual: Float[Array, "h w"], valid: Bool[Array, "h w"], log_depth: Float[Array, "h w"], num_bins: int
) -> Float[Array, "h w"]:
    """Spreads a residual from valid pixels over the whole image, smoothly, but not across depth edges.

    Pull-push over an image pyramid, done apart in `num_bins` overlapping layers of depth and blended by each pixel's
    own depth. Far from all valid pixels of its layer, the field fades to zero.

    Args:
        residual: log(z_map / z_aligned), used where `valid`.
        log_depth: log of the aligned depth, finite everywhere.
    """
    low, high = log_depth.min(), log_depth.max()
    position = (log_depth - low) / jnp.maximum(high - low, 1e-3) * (num_bins - 1)
    layers = jnp.maximum(1 - jnp.abs(position - jnp.arange(num_bins)[:, None, None]), 0)  # hats that sum to one
    weights = layers * valid
    fields = pull_push(weights * jnp.where(valid, residual, 0.0), weights, _FIELD_SMOOTHNESS)
    return jnp.sum(layers * fields, axis=0)


def masked_median(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """Lower median of the masked values, float32; 0 when there are none.

    Exact, and found bit by bit in 32 counts: a sort takes longer to run, and on a TPU minutes to compile.
    """
    count = mask.sum()
    rank = jnp.maximum(count - 1, 0) // 2
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    words = jnp.where(bits >> 31 == 0, bits | _SIGN, ~bits)  # in the order of the values
    words = jnp.where(mask, words, ~jnp.uint32(0))

    def one_bit(place, found):
        larger = found | (_SIGN >> place.astype(jnp.uint32))
        return jnp.where((words < larger).sum() <= rank, larger, found)

    word = jax.lax.fori_loop(0, 32, one_bit, jnp.uint32(0))
    median = jax.lax.bitcast_convert_type(jnp.where(word >> 31 == 0, ~word, word ^ _SIGN), jnp.float32)
    return jnp.where(count > 0, median, 0.0)


def _robust_fit(x, y, valid, prior: Fit, strength: float, iterations: int) -> Fit:
    """From `prior`: Geman-McClure weights on the relative error of inverse depth; their width follows its median."""

    def step(fit: Fit, _):
        error = (fit.scale * x + fit.shift) / y - 1
        sigma = jnp.maximum(1.4826 * masked_median(jnp.abs(error), valid), _MIN_SIGMA)
        weight = valid / jnp.square(1 + jnp.square(error / (2 * sigma)))
        return _solve(x / y, 1 / y, weight, prior, strength), None

    fit, _ = jax.lax.scan(step, prior, None, length=iterations)
    return fit


def _solve(a, b, weight, prior: Fit, strength: float) -> Fit:
    """Least squares of scale * a + shift * b = 1, drawn to `prior` with the pull of `strength` average pixels."""
    total = weight.sum()
    aa, ab, bb = (weight * a * a).sum(), (weight * a * b).sum(), (weight * b * b).sum()
    pull_a = strength * jnp.where(total > 0, aa / jnp.maximum(total, 1e-6), 1.0)
    pull_b = strength * jnp.where(total > 0, bb / jnp.maximum(total, 1e-6), 1.0)
    right_a = (weight * a).sum() + pull_a * prior.scale
    right_b = (weight * b).sum() + pull_b * prior.shift
    aa, bb = aa + pull_a, bb + pull_b
    determinant = aa * bb - ab * ab  # positive: the pull keeps the two columns apart, even for a flat wall
    scale = (bb * right_a - ab * right_b) / determinant
    shift = (aa * right_b - ab * right_a) / determinant
    return Fit(jnp.clip(scale, 1 / _MAX_RATIO, _MAX_RATIO), shift)

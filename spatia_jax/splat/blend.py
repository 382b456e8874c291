"""Points to a picture and back: the forward pass by the platform's fastest way, the backward pass by hand.

The blend and its gradients follow spec/splat.md R1. Autodiff would scatter-add a value for every disc of every pixel,
which GPUs do with atomics and TPUs one by one; here they are sorted by point and summed in runs. The backward pass
chooses the points again, so that nothing the size of an image times K is kept between the passes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.sorting import stable_argsort
from spatia_jax.splat import cpu, pallas
from spatia_jax.splat.fragments import rasterize, shade
from spatia_jax.splat.projection import SplatConfig, pixel_centers


def sorted_segment_sum(
    values: Float[Array, "m c"], segment: Int[Array, " m"], num_segments: int
) -> Float[Array, "num_segments c"]:
    """Sums of the rows with the same segment; rows whose segment is negative are left out.

    A sort, a segmented scan and gathers: no scatter, and the same bits every time.
    """
    order = stable_argsort(jnp.where(segment < 0, num_segments, segment).astype(jnp.uint32))
    segment, values = segment[order], jnp.where((segment >= 0)[:, None], values, 0)[order]
    starts = jnp.concatenate([jnp.ones(1, bool), segment[1:] != segment[:-1]])

    def combine(left, right):
        return left[0] | right[0], right[1] + jnp.where(right[0][:, None], 0, left[1])

    _, sums = lax.associative_scan(combine, (starts, values))
    key = jnp.where(segment < 0, num_segments, segment)
    last = jnp.searchsorted(key, jnp.arange(num_segments), side="right", method="sort") - 1
    found = (last >= 0) & (key[last] == jnp.arange(num_segments))
    return jnp.where(found[:, None], sums[last], 0)


def _draw_with_xla(ndc, radius2, valid, features, height: int, width: int, config: SplatConfig):
    fragments = rasterize(ndc, valid, height, width, config, radius2)
    color, coverage = shade(fragments, features)
    return color, coverage, jnp.maximum(fragments.depth[..., 0], 0.0)


def _pull_with_xla(ndc, radius2, valid, features, cotangents, height: int, width: int, config: SplatConfig):
    """Gradients of ndc [n, 3], of every point's squared radius [n] and of features [n, c].

    With A the blend of what lies behind a disc, weighed by the cotangent, and s the disc's own value, the blend so far
    is `alpha s + (1 - alpha) A`; walked back to front, no division by `1 - alpha` is needed.
    """
    to_color, to_coverage, to_depth = cotangents
    fragments = rasterize(ndc, valid, height, width, config, radius2)
    indices, alpha = fragments.indices, fragments.alpha
    hit, at = indices >= 0, jnp.maximum(indices, 0)
    passed = jnp.concatenate([jnp.ones_like(alpha[..., :1]), jnp.cumprod(1.0 - alpha, axis=-1)[..., :-1]], axis=-1)
    behind, each, count = jnp.zeros_like(to_coverage), [], indices.shape[-1]
    for k in range(count - 1, -1, -1):
        value = to_coverage + (jnp.where(hit[..., k, None], features[at[..., k]], 0) * to_color).sum(-1)
        each.append(passed[..., k] * (value - behind))
        behind = alpha[..., k] * value + (1.0 - alpha[..., k]) * behind
    to_alpha = jnp.where(hit, jnp.stack(each[::-1], axis=-1), 0.0)
    squared = fragments.radius2 if fragments.radius2.ndim else jnp.full_like(alpha, fragments.radius2)
    x, y = map(jnp.asarray, pixel_centers(height, width))
    chosen = ndc[at]
    to_distance2 = -to_alpha / squared
    to_each = jnp.stack(
        [
            2.0 * to_distance2 * (chosen[..., 0] - x[:, None]),
            2.0 * to_distance2 * (chosen[..., 1] - y[:, None, None]),
            jnp.zeros_like(alpha).at[..., 0].set(to_depth),
            to_alpha * fragments.distance2 / squared**2,
        ],
        axis=-1,
    )
    to_each = jnp.concatenate([to_each, (alpha * passed)[..., None] * to_color[:, :, None]], axis=-1)
    sums = sorted_segment_sum(to_each.reshape(-1, to_each.shape[-1]), indices.reshape(-1), ndc.shape[0])
    return sums[:, :3], sums[:, 3], sums[:, 4:]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def draw(
    ndc: Float[Array, "n 3"],
    radius2: Float[Array, ...],
    valid: Bool[Array, " n"],
    features: Float[Array, "n c"],
    height: int,
    width: int,
    config: SplatConfig,
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"], Float[Array, "h w"]]:
    """One view: blended features, coverage (the same with features of 1), depth of the nearest disc (0 in holes)."""
    size = {"height": height, "width": width}
    cloud = ndc, radius2, valid, features
    if config.algorithm != "auto" or not ndc.shape[0]:
        return _draw_with_xla(*cloud, **size, config=config)
    stencil = partial(_draw_with_xla, **size, config=replace(config, algorithm="stencil"))
    native = partial(cpu.draw, **size, k=config.points_per_pixel)

    def with_pallas(*cloud):
        return pallas.draw(*cloud, height, width, config, fallback=lambda: stencil(*cloud))

    return lax.platform_dependent(*cloud, cpu=native, tpu=with_pallas, default=stencil)


def _forward(ndc, radius2, valid, features, height, width, config):
    return draw(ndc, radius2, valid, features, height, width, config), (ndc, radius2, valid, features)


def _backward(height, width, config, cloud, cotangents):
    with_xla = partial(_pull_with_xla, height=height, width=width, config=config)
    native = partial(cpu.pull, height=height, width=width, k=config.points_per_pixel)
    if config.algorithm != "auto":
        to_ndc, to_radius2, to_features = with_xla(*cloud, cotangents)
    else:
        to_ndc, to_radius2, to_features = lax.platform_dependent(*cloud, cotangents, cpu=native, default=with_xla)
    return to_ndc, to_radius2 if cloud[1].ndim else to_radius2.sum(), None, to_features


draw.defvjp(_forward, _backward)

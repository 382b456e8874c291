"""The discs that a pixel sees, as arrays, and their blend in plain JAX: the reference for what the kernels fuse.

Semantics: spec/splat.md R1 (PyTorch3D's PointsRasterizer and AlphaCompositor). A point covers a pixel if the pixel's
centre lies strictly within its radius; it weighs `1 - distance^2 / radius^2`; the `points_per_pixel` nearest are
composited. The choice of points is discrete and carries no gradient; everything after it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.splat import cpu, pallas
from spatia_jax.splat.peel import peel
from spatia_jax.splat.projection import SplatConfig, pixel_centers
from spatia_jax.splat.stencil import stencil


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fragments:
    """The discs that each pixel sees, nearest first.

    Attributes:
        indices: [h, w, k] int32, which point; -1 for no more points.
        depth: [h, w, k] view depth; -1 for no point.
        distance2: [h, w, k] squared NDC distance from the pixel's centre; -1 for no point.
        radius2: squared NDC radius of the disc, [h, w, k] or [] where all are the same.
        certified: [h, w] bool, where it is certain that no nearer disc was missed: everywhere.
        ignored: [] int32, how many points were left out because they are not finite.
    """

    indices: Array
    depth: Array
    distance2: Array
    radius2: Array
    certified: Array
    ignored: Array

    @property
    def alpha(self) -> Array:
        """[h, w, k], how much of what lies behind it a disc hides; 0 for no point."""
        return jnp.where(self.indices >= 0, 1.0 - self.distance2 / self.radius2, 0.0)


def choose(
    ndc, radius2, valid, height: int, width: int, config: SplatConfig
) -> tuple[Int[Array, "h w k"], Bool[Array, "h w"]]:
    """Indices of the K nearest points whose disc covers each pixel, by (depth, index); -1 where there are fewer.

    Also where that is certified.
    """
    if not ndc.shape[0]:
        return jnp.full((height, width, config.points_per_pixel), -1, jnp.int32), jnp.ones((height, width), bool)
    cloud = lax.stop_gradient((ndc, radius2, valid))
    if config.algorithm != "auto":
        return {"peel": peel, "stencil": stencil}[config.algorithm](*cloud, height, width, config)

    def native(*cloud):
        return cpu.choose(*cloud, height, width, config.points_per_pixel), jnp.ones((height, width), bool)

    def with_xla(*cloud):
        return stencil(*cloud, height, width, config)

    def with_pallas(*cloud):
        return pallas.choose(*cloud, height, width, config)

    return lax.platform_dependent(*cloud, cpu=native, tpu=with_pallas, default=with_xla)


def rasterize(
    ndc: Float[Array, "n 3"],
    valid: Bool[Array, " n"],
    height: int,
    width: int,
    config: SplatConfig,
    radius2: Float[Array, ...] | None = None,
) -> Fragments:
    """The `points_per_pixel` nearest discs over each pixel, by (depth, index). Gradients flow to depth and distance.

    Args:
        ndc: from `project`; points that are not finite are left out.
        radius2: squared NDC radius of every point [n]; by default all have `config.radius`.
    """
    if radius2 is None:
        radius2 = jnp.asarray(np.float32(config.radius) ** 2)
    indices, certified = choose(ndc, radius2, valid, height, width, config)
    ignored = (valid & ~jnp.isfinite(ndc).all(axis=-1)).sum(dtype=jnp.int32)
    if not ndc.shape[0]:
        none = jnp.full(indices.shape, -1, ndc.dtype)
        return Fragments(indices, none, none, jnp.ones((), ndc.dtype), certified, ignored)
    hit, at = indices >= 0, jnp.maximum(indices, 0)
    chosen = ndc[at]
    x, y = map(jnp.asarray, pixel_centers(height, width))
    distance2 = (chosen[..., 0] - x[:, None]) ** 2 + (chosen[..., 1] - y[:, None, None]) ** 2
    return Fragments(
        indices, jnp.where(hit, chosen[..., 2], -1.0), jnp.where(hit, distance2, -1.0),
        radius2[at] if radius2.ndim else radius2, certified, ignored,
    )  # fmt: skip


def shade(fragments: Fragments, features: Float[Array, "n c"]) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    """Blend the features of each pixel's discs front to back. Returns the blend and the blended weight (coverage)."""
    hit, alpha = fragments.indices >= 0, fragments.alpha
    color = jnp.zeros((*hit.shape[:2], features.shape[-1]), features.dtype)
    if not features.shape[0]:
        return color, jnp.zeros(hit.shape[:2], features.dtype)
    passed = jnp.ones(hit.shape[:2], alpha.dtype)
    for k in range(hit.shape[-1]):
        weight = (alpha[..., k] * passed)[..., None]
        chosen = features[jnp.maximum(fragments.indices[..., k], 0)]
        color += weight * jnp.where(hit[..., k, None], chosen, 0.0)
        passed *= 1.0 - alpha[..., k]
    return color, 1.0 - passed

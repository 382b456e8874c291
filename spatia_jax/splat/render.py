"""The point renderer: project, choose the K nearest discs of every pixel, blend them front to back.

Semantics: spec/splat.md R1 (PyTorch3D's PointsRasterizer and AlphaCompositor). A point covers a pixel if the pixel's
centre lies strictly within `radius` of it; it weighs `1 - distance^2 / radius^2`; the `points_per_pixel` nearest are
composited. The choice of points is discrete and carries no gradient; everything after it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.splat.peel import peel
from spatia_jax.splat.projection import SplatConfig, pixel_centers, project
from spatia_jax.splat.stencil import stencil


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fragments:
    """The discs that each pixel sees, nearest first.

    Attributes:
        indices: [h, w, k] int32, which point; -1 for no more points.
        depth: [h, w, k] view depth; -1 for no point.
        distance2: [h, w, k] squared NDC distance from the pixel's centre; -1 for no point.
    """

    indices: Array
    depth: Array
    distance2: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Projection:
    """A point map seen by v cameras.

    Attributes:
        color: [v, h, w, c], composited features; 0 where nothing is.
        coverage: [v, h, w] in [0, 1], the composited weight: what the same points give with features of 1.
        depth: [v, h, w], view depth of the nearest disc; 0 in holes.
    """

    color: Array
    coverage: Array
    depth: Array

    @property
    def holes(self) -> Array:
        """[v, h, w] bool, where no point landed."""
        return self.depth <= 0


def _selector(config: SplatConfig, num_points: int, num_pixels: int):
    """The algorithm to use: scattering is fast on CPU, and the stencil pays off once its cells are half full."""
    if config.algorithm == "auto":
        return peel if jax.default_backend() == "cpu" and 2 * num_points < num_pixels else stencil
    return {"peel": peel, "stencil": stencil}[config.algorithm]


def rasterize(
    ndc: Float[Array, "n 3"], valid: Bool[Array, " n"], height: int, width: int, config: SplatConfig
) -> Fragments:
    """The `points_per_pixel` nearest discs over each pixel, by (depth, index). Gradients flow to depth and distance."""
    if not ndc.shape[0]:
        none = jnp.full((height, width, config.points_per_pixel), -1, jnp.int32)
        return Fragments(none, none.astype(ndc.dtype), none.astype(ndc.dtype))
    indices = _selector(config, ndc.shape[0], height * width)(lax.stop_gradient(ndc), valid, height, width, config)
    hit = indices >= 0
    chosen = ndc[jnp.maximum(indices, 0)]
    x, y = map(jnp.asarray, pixel_centers(height, width))
    distance2 = (chosen[..., 0] - x[:, None]) ** 2 + (chosen[..., 1] - y[:, None, None]) ** 2
    return Fragments(indices, jnp.where(hit, chosen[..., 2], -1.0), jnp.where(hit, distance2, -1.0))


def shade(
    fragments: Fragments, features: Float[Array, "n c"], config: SplatConfig
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    """Blend the features of each pixel's discs front to back. Returns the blend and the blended weight (coverage)."""
    hit = fragments.indices >= 0
    alpha = jnp.where(hit, 1.0 - fragments.distance2 / config.radius**2, 0.0)
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


@partial(jax.jit, static_argnames=("height", "width", "config"))
def render(
    positions: Float[Array, "n 3"],
    features: Float[Array, "n c"],
    valid: Bool[Array, " n"],
    cameras: Cameras,
    *,
    height: int,
    width: int,
    config: SplatConfig,
) -> Projection:
    """Render points with any number of features into v views, one view after another.

    Args:
        positions: world coordinates; points that are not finite are left out.
        features: values to blend, colours in [0, 1] or any other.
        valid: which of the points exist.
        cameras: path of v views.

    Raises:
        InputError: if the arrays' lengths differ or the image has no pixel.
    """
    if not positions.shape[0] == features.shape[0] == valid.shape[0]:
        raise InputError(
            f"splat.render got {positions.shape[0]} positions, {features.shape[0]} features and {valid.shape[0]} "
            "valid flags; all three need one entry per point"
        )
    if height < 1 or width < 1:
        raise InputError(f"splat.render was asked for {height} x {width} pixels; both have to be at least 1")

    def one_view(camera: Cameras) -> Projection:
        ndc = project(positions, camera, height, width, config)
        fragments = rasterize(ndc, valid, height, width, config)
        color, coverage = shade(fragments, features, config)
        return Projection(color, coverage, jnp.maximum(fragments.depth[..., 0], 0.0))

    return lax.map(one_view, cameras)

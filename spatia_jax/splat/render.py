"""The point renderer: a point map and a camera path in, pictures with coverage and depth out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
from jax import lax
from jaxtyping import Array, Bool, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.splat.blend import draw
from spatia_jax.splat.projection import SplatConfig, disc_radius2, project


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
    """Render points with any number of features into v views.

    Views are rendered `config.views_at_once` at a time, forth and back, so that memory beyond the result does not grow
    with their number; a view uses all cores of a CPU.

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

    @jax.checkpoint  # the points of every view are projected again rather than kept for the backward pass
    def one_view(camera: Cameras) -> Projection:
        ndc = project(positions, camera, height, width, config)
        radius2 = disc_radius2(ndc[:, 2], camera, height, width, config)
        return Projection(*draw(ndc, radius2, valid, features, height, width, config))

    if config.views_at_once == 1:
        return lax.map(one_view, cameras)
    return lax.map(one_view, cameras, batch_size=config.views_at_once)

"""The point renderer: exact, jittable, differentiable discs with PyTorch3D's semantics."""

from spatia_jax.splat.fragments import Fragments, rasterize, shade
from spatia_jax.splat.projection import SplatConfig, disc_radius2, project
from spatia_jax.splat.render import Projection, render
from spatia_jax.splat.sharded import render_in_parts, render_sharded

__all__ = [
    "Fragments",
    "Projection",
    "SplatConfig",
    "disc_radius2",
    "project",
    "rasterize",
    "render",
    "render_in_parts",
    "render_sharded",
    "shade",
]

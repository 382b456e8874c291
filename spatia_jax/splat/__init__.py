"""The point renderer: exact, jittable, differentiable discs with PyTorch3D's semantics."""

from spatia_jax.splat.projection import SplatConfig, project
from spatia_jax.splat.render import Fragments, Projection, rasterize, render, shade

__all__ = ["Fragments", "Projection", "SplatConfig", "project", "rasterize", "render", "shade"]

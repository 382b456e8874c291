"""Spatia in JAX: video generation with an updatable 3D point map as memory (arXiv 2512.15716)."""

__version__ = "0.1.0"

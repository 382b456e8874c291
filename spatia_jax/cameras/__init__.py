"""Cameras: poses and intrinsics, file formats, paths, a small language to ask for paths, and a check before compute."""

from spatia_jax.cameras.camera import Cameras

__all__ = ["Cameras"]

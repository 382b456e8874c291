"""Cameras: poses and intrinsics, file formats, paths, a small language to ask for paths, and a check before compute."""

from spatia_jax.cameras.camera import Cameras, default_intrinsics
from spatia_jax.cameras.check import PathReport, check_path
from spatia_jax.cameras.formats import FORMATS, read_cameras, write_cameras
from spatia_jax.cameras.language import PATH_HELP, parse_path

__all__ = [
    "FORMATS",
    "PATH_HELP",
    "Cameras",
    "PathReport",
    "check_path",
    "default_intrinsics",
    "parse_path",
    "read_cameras",
    "write_cameras",
]

"""Axis conventions of other programs, converted at the door and nowhere else.

A convention is the 3x3 matrix that takes OpenCV camera coordinates (x right, y down, z forward) to its own. Most bugs
with camera files are one of these matrices missing, so none is ever guessed: whoever imports names one.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from spatia_jax.cameras.camera import Cameras


@dataclass(frozen=True)
class Axes:
    """Camera axes of a program: `signs` are those of x (right), y (down) and z (forward) relative to OpenCV's."""

    name: str
    signs: tuple[int, int, int]


OPENCV = Axes("OpenCV, COLMAP: x right, y down, z forward", (1, 1, 1))
OPENGL = Axes("OpenGL, Blender, nerfstudio: x right, y up, z backward", (1, -1, -1))
PYTORCH3D = Axes("PyTorch3D: x left, y up, z forward", (-1, -1, 1))

# Rotations from other worlds to one in which y points down and z forward, as the first OpenCV camera sees it.
Y_DOWN_FROM_Z_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))  # Blender, ROS-like maps: z up, y forward
Y_DOWN_FROM_Y_UP = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))  # OpenGL, glTF: y up, z backward


def from_world_from_cam(
    world_from_cam: Float[Array, "*v 3 4"], intrinsics: Float[Array, "*#v 4"], axes: Axes
) -> Cameras:
    """Cameras from camera-to-world matrices whose camera axes are `axes`."""
    rotation = world_from_cam[..., :3] * jnp.array(axes.signs, world_from_cam.dtype)
    inverse = jnp.swapaxes(rotation, -1, -2)
    translation = -jnp.sum(inverse * world_from_cam[..., None, :, 3], axis=-1)
    cam_from_world = jnp.concatenate([inverse, translation[..., None]], axis=-1)
    return Cameras(cam_from_world, jnp.broadcast_to(intrinsics, (*cam_from_world.shape[:-2], 4)))


def to_world_from_cam(cameras: Cameras, axes: Axes) -> Float[Array, "*v 3 4"]:
    """Camera-to-world matrices whose camera axes are `axes`."""
    return cameras.world_from_cam * jnp.array((*axes.signs, 1), cameras.cam_from_world.dtype)


def change_world(cameras: Cameras, new_from_old: Float[Array, "3 3"]) -> Cameras:
    """The same cameras in a rotated world, for instance `Y_DOWN_FROM_Z_UP` for paths made in Blender."""
    new_from_old = jnp.asarray(new_from_old, cameras.cam_from_world.dtype)
    rotation = jnp.sum(cameras.rotation[..., :, None, :] * new_from_old, axis=-1)  # R_new = R_old @ new_from_old^T
    return Cameras(jnp.concatenate([rotation, cameras.translation[..., None]], axis=-1), cameras.intrinsics)

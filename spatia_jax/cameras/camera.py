"""Pinhole cameras: poses and intrinsics of any number of views, as one pytree.

Inside the library there is one convention. Axes are OpenCV's (x right, y down, z forward), poses are world-to-camera,
and intrinsics are normalised (fx, cx by the width; fy, cy by the height), so that they survive a resize. Normalised
image coordinates run from 0 to 1, edge to edge: pixel i of W has its centre at (i + 0.5) / W. Other conventions exist
only at the door, in `cameras.formats` and `cameras.conventions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float

from spatia_jax.errors import InputError

# Accelerators multiply float32 matrices in bfloat16 unless asked otherwise; a pose has no digits to spare.
_HIGHEST = jax.lax.Precision.HIGHEST
DEFAULT_FOV = 65.0  # degrees, about a telephone's main camera


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cameras:
    """Poses and intrinsics of views with any leading shape `*v` (`()` is one view, `(n,)` a path).

    Attributes:
        cam_from_world: [*v, 3, 4] float32, world-to-camera [R | t], OpenCV axes, lengths in metres or scene units.
        intrinsics: [*v, 4] float32, fx fy cx cy, normalised by width, height, width, height.
    """

    cam_from_world: Array
    intrinsics: Array

    @classmethod
    def from_se3(cls, cam_from_world: jaxlie.SE3, intrinsics: Float[Array | np.ndarray, "*#v 4"]) -> Cameras:
        """Cameras from world-to-camera transforms; the intrinsics broadcast over the views."""
        matrices = cam_from_world.as_matrix()[..., :3, :]
        return cls(matrices, jnp.broadcast_to(jnp.asarray(intrinsics, matrices.dtype), (*matrices.shape[:-2], 4)))

    @classmethod
    def concatenate(cls, cameras: Sequence[Cameras]) -> Cameras:
        """Views of several paths, one after another along the first axis."""
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *cameras)

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading shape `*v`."""
        return self.intrinsics.shape[:-1]

    @property
    def num_views(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single camera has no length")
        return self.shape[0]

    def __getitem__(self, index) -> Cameras:
        """Index the leading axes with anything that indexes an array; `camera[None]` is a path of one view."""
        if not self.shape and index is not None:
            raise IndexError("a single camera cannot be indexed")
        return Cameras(self.cam_from_world[index], self.intrinsics[index])

    @property
    def rotation(self) -> Float[Array, "*v 3 3"]:
        return self.cam_from_world[..., :3]

    @property
    def translation(self) -> Float[Array, "*v 3"]:
        return self.cam_from_world[..., 3]

    @property
    def centers(self) -> Float[Array, "*v 3"]:
        """Where the cameras stand, in the world."""
        return -jnp.einsum("...ji,...j->...i", self.rotation, self.translation, precision=_HIGHEST)

    @property
    def world_from_cam(self) -> Float[Array, "*v 3 4"]:
        return jnp.concatenate([jnp.swapaxes(self.rotation, -1, -2), self.centers[..., None]], axis=-1)

    def as_se3(self) -> jaxlie.SE3:
        """World-to-camera transforms as a Lie group element."""
        return jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.from_matrix(self.rotation), self.translation)

    def pixel_intrinsics(self, height: int, width: int) -> Float[Array, "*v 4"]:
        """fx fy cx cy in pixels of a height x width image, where integer coordinates are pixel centres."""
        size = jnp.array([width, height, width, height], self.intrinsics.dtype)
        return self.intrinsics * size - jnp.array([0.0, 0.0, 0.5, 0.5], self.intrinsics.dtype)

    def transform(self, points: Float[Array, "n 3"]) -> Float[Array, "*v n 3"]:
        """World points in the coordinates of every camera."""
        rotated = jnp.einsum("...ij,nj->...ni", self.rotation, points, precision=_HIGHEST)
        return rotated + self.translation[..., None, :]

    def project(
        self, points: Float[Array, "n 3"], height: int, width: int
    ) -> tuple[Float[Array, "*v n 2"], Float[Array, "*v n"]]:
        """Pixel coordinates (u right, v down; pixel centres are integers) and z-depth of world points.

        Points behind a camera have depth <= 0; their coordinates are finite (so are gradients) and mean nothing.
        """
        in_camera = self.transform(points)
        depth = in_camera[..., 2]
        ray = in_camera[..., :2] / jnp.where(depth > 0, depth, 1.0)[..., None]
        k = self.pixel_intrinsics(height, width)[..., None, :]
        return ray * k[..., :2] + k[..., 2:], depth

    def rays(self, height: int, width: int) -> Float[Array, "*v h w 3"]:
        """Directions through the pixel centres, in camera coordinates, scaled to z = 1."""
        k = self.pixel_intrinsics(height, width)[..., None, None, :]
        columns, rows = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
        x = (columns - k[..., 2]) / k[..., 0]
        y = (rows - k[..., 3]) / k[..., 1]
        return jnp.stack([x, y, jnp.ones_like(x)], axis=-1)

    def unproject(self, depth: Float[Array, "*v h w"]) -> Float[Array, "*v h w 3"]:
        """World points of z-depth images: the inverse of `project` on the pixel grid."""
        in_camera = self.rays(*depth.shape[-2:]) * depth[..., None]
        rotated = jnp.einsum("...ji,...hwj->...hwi", self.rotation, in_camera, precision=_HIGHEST)
        return rotated + self.centers[..., None, None, :]


def default_intrinsics(field_of_view: float | None, size: tuple[int, int]) -> np.ndarray:
    """Normalised intrinsics [4] of a centred pinhole with square pixels.

    `field_of_view` is horizontal, in degrees; `DEFAULT_FOV` if None.
    """
    field_of_view = DEFAULT_FOV if field_of_view is None else field_of_view
    if not 5 <= field_of_view <= 150:
        raise InputError(f"--fov is {field_of_view}; a horizontal field of view lies between 5 and 150 degrees")
    focal = 0.5 / np.tan(np.radians(field_of_view) / 2)
    height, width = size
    return np.array([focal, focal * width / height, 0.5, 0.5], np.float32)

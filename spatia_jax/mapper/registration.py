"""Depth that another camera took than the colours, carried into the camera of the colours."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper.sequence import Sequence


@dataclass(frozen=True)
class ColorCamera:
    """Where the camera of the colours is, seen from that of the depth, and its lens.

    Attributes:
        color_from_depth: [4, 4], metres.
        focal: in widths of the picture; pixels are square, the principal point lies in the middle.
    """

    color_from_depth: Float[np.ndarray, "4 4"]
    focal: float


# The Kinect of 7-Scenes, whose poses and lens are the depth camera's. Calibration:
# https://projet.liris.cnrs.fr/voir/activities-dataset/kinect-calibration.html
# DSAC* (arXiv 2002.12324) and others use it.
KINECT = ColorCamera(
    np.array(
        [
            [0.99996518013, 0.00267651265, -0.00790410123, -0.02555894318],
            [-0.00274093113, 0.99996302803, -0.00815045208, 0.00010109636],
            [0.00788199421, 0.00817183288, 0.99993554558, 0.00203183217],
            [0, 0, 0, 1],
        ]
    ),
    focal=525 / 640,
)


def register(sequence: Sequence, camera: ColorCamera) -> Sequence:
    """A sequence whose poses, lens and depth were the depth camera's, with those of the colour camera.

    Of several readings that fall on one pixel the nearest counts; pixels on which none falls have no depth.

    Raises:
        InputError: no poses or no depth.
    """
    if sequence.cameras is None or sequence.depth is None:
        raise InputError("depth can be registered only where a sequence has both poses and depth")
    depths, before = sequence.depth, sequence.cameras
    height, width = depths.shape[1:]
    moved = jaxlie.SE3.from_matrix(jnp.asarray(camera.color_from_depth, jnp.float32)) @ before.as_se3()
    lens = np.array([camera.focal, camera.focal * width / height, 0.5, 0.5], np.float32)
    cameras = Cameras.from_se3(moved, lens)

    def carried(frame: int) -> np.ndarray:
        depth = depths[frame]
        points = before[frame].unproject(jnp.asarray(depth)).reshape(-1, 3)
        pixels, found = map(np.asarray, cameras[frame].project(points, height, width))
        column, row = np.round(pixels).astype(int).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth.ravel() > 0) & (found > 0)
        nearest = np.full((height, width), np.inf, np.float32)
        np.minimum.at(nearest, (row[inside], column[inside]), found[inside])
        return np.where(np.isfinite(nearest), nearest, 0)

    depth = np.stack([carried(frame) for frame in range(len(sequence.frames))])
    return dataclasses.replace(sequence, cameras=cameras, depth=depth)

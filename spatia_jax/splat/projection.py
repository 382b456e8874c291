"""From world points to the renderer's normalised device coordinates (NDC).

NDC as PyTorch3D has them: +x left, +y up, the shorter image side spans [-1, 1], z is the view depth. Two conventions
bring a point there. `correct` puts it on the pixel where `Cameras.project` puts it. `release` is the function that the
released weights were trained with (spec/splat.md R1): it scales by `s - 1` in place of `s` (s the shorter side), takes
the pixel intrinsics without the half-pixel shift, and mirrors the principal point.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError

CONVENTIONS = ("correct", "release")
# Nearer than this a division by depth overflows float32; such points have no pixel.
_MIN_ABS_DEPTH = 1e-12
_SMALLEST_DISC_PX = 0.75  # no place is farther than 0.71 pixels from the centre of one


@dataclass(frozen=True)
class SplatConfig:
    """How points become discs. Static: hashable, a jit argument by value.

    Attributes:
        radius: disc radius in NDC (half the shorter image side is 1); the same for every depth, or, with
            `metric_radius`, the largest that a disc can get.
        points_per_pixel: how many of the nearest discs are blended in a pixel. 5 as released; take 12 to 20 where
            gradients have to be right, because they do not see a point enter or leave this list.
        convention: "correct" or "release", see the module docstring.
        algorithm: "auto" (the fastest for the platform that the program is compiled for), "peel" or "stencil"; all
            select the same points.
        metric_radius: disc radius in the world's units, for clouds that know their spacing: a disc shrinks with its
            distance, to no less than 3/4 of a pixel so that it always covers one.
        views_at_once: how many views are in memory together. One keeps every core of a CPU busy.
    """

    radius: float = 0.01
    points_per_pixel: int = 5
    convention: str = "correct"
    algorithm: str = "auto"
    metric_radius: float | None = None
    views_at_once: int = 1

    def __post_init__(self):
        if not self.radius > 0:
            raise InputError(f"splat radius is {self.radius}; it has to be above 0 (NDC, half the shorter side is 1)")
        if self.points_per_pixel < 1:
            raise InputError(f"splat points_per_pixel is {self.points_per_pixel}; it has to be at least 1")
        if self.metric_radius is not None and not self.metric_radius > 0:
            raise InputError(f"splat metric_radius is {self.metric_radius}; it has to be above 0 (the world's units)")
        if self.views_at_once < 1:
            raise InputError(f"splat views_at_once is {self.views_at_once}; it has to be at least 1")
        if self.convention not in CONVENTIONS:
            raise InputError(f"splat convention is {self.convention!r}; it has to be one of {', '.join(CONVENTIONS)}")
        if self.algorithm not in ("auto", "peel", "stencil"):
            raise InputError(f"splat algorithm is {self.algorithm!r}; it has to be one of auto, peel, stencil")


def pixel_centers(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """NDC x of every column and y of every row, float32, rounded as PyTorch3D rounds them."""

    def along(size: int, other: int) -> np.ndarray:
        span = np.float32(2.0) if size <= other else np.float32(size) * np.float32(2.0) / np.float32(other)
        half = span / np.float32(2.0)
        flipped = np.arange(size)[::-1].astype(np.float32)
        return -half + (span * flipped + half) / np.float32(size)

    return along(width, height), along(height, width)


def disc_radius2(
    depth: Float[Array, " n"], camera: Cameras, height: int, width: int, config: SplatConfig
) -> Float[Array, ...]:
    """Squared disc radius in NDC: of every point [n], or of all [] where depth does not matter."""
    largest = np.float32(config.radius)
    if config.metric_radius is None:
        return jnp.asarray(largest * largest)
    shorter = min(height, width)
    focal = jnp.sqrt(camera.intrinsics[0] * width * camera.intrinsics[1] * height)
    usable = depth > _MIN_ABS_DEPTH
    radius = config.metric_radius * focal * (2.0 / shorter) / jnp.where(usable, depth, 1.0)
    smallest = min(_SMALLEST_DISC_PX * 2.0 / shorter, config.radius)
    return jnp.clip(radius, smallest, config.radius) ** 2


def project(
    positions: Float[Array, "n 3"], camera: Cameras, height: int, width: int, config: SplatConfig
) -> Float[Array, "n 3"]:
    """NDC x, y and view depth z of world points seen by one camera.

    Points that are not finite or lie in the camera's plane get NaN, which hits no pixel and passes no gradient.
    """
    shorter = min(height, width)
    size = jnp.array([width, height], jnp.float32)
    focal, principal = camera.intrinsics[:2] * size, camera.intrinsics[2:] * size
    rotation, translation = camera.cam_from_world[:, :3], camera.cam_from_world[:, 3]
    if config.convention == "release":
        rotation = jnp.linalg.inv(rotation).T  # the rotation itself, unless it is not quite orthonormal
        scale = 2.0 / max(shorter - 1, 1)
        offset = scale * (principal - (size - 1) / 2)
    else:
        scale = 2.0 / shorter
        offset = -scale * (principal - size / 2)

    finite = jnp.isfinite(positions).all(axis=-1)
    # Every invalid value is replaced before it meets arithmetic: 0 * NaN would poison the camera's gradient.
    safe = jnp.where(finite[:, None], positions, 0.0)
    # x left, y up from the start: this order of operations is the release's, down to most of the float32 bits.
    flip = jnp.array([-1.0, -1.0, 1.0], jnp.float32)
    # Written out, because a matrix product of width 3 is twenty times slower on CPU and rounds to bfloat16 on TPU.
    axes = rotation.T * flip
    view = safe[:, :1] * axes[0] + safe[:, 1:2] * axes[1] + safe[:, 2:] * axes[2] + translation * flip
    depth = view[:, 2]
    usable = finite & (jnp.abs(depth) > _MIN_ABS_DEPTH)
    divisor = jnp.where(usable, depth, 1.0)[:, None]
    xy = (scale * focal * view[:, :2] + offset * divisor) / divisor
    return jnp.where(usable[:, None], jnp.concatenate([xy, depth[:, None]], axis=-1), jnp.nan)

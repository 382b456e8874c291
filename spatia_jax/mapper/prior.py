"""The two places where another mapper can stand."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Array, Bool, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.mapper.update import MapUpdate


class DepthPrior(Protocol):
    """Depth of single images, up to an error that alignment can take out; `models.depth.DepthNetwork` is one."""

    def __call__(self, images: Float[Array, "t h w 3"]) -> Float[Array, "t h w"]:
        """Positive z-depth of images in [-1, 1]."""
        ...


class Mapper(Protocol):
    """Turns the frames of one clip into cameras, depth, and what of it is static.

    `update` with its config bound is one. A mapper may correct the commanded cameras: callers insert points with those
    of the answer.
    """

    def __call__(
        self,
        depth_frames: Float[Array, "t h w"],
        frames: Float[Array, "t h w 3"],
        cameras: Cameras,
        map_depth: Float[Array, "t h w"],
        map_color: Float[Array, "t h w 3"],
        masks: Bool[Array, "t h w"] | None = None,
    ) -> MapUpdate: ...

"""What bundle adjustment is given and what it solves for: plain pytrees with static shapes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.cameras.camera import Cameras


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Matches:
    """Where the pixels of source frames are seen in target frames: e directed edges.

    Attributes:
        source, target: [e] int32 frame numbers; an edge with a number outside 0..v-1 is empty.
        pixels: [e, h, w, 2] u, v in the target of each pixel of the source, integers at pixel centres.
        weights: [e, h, w, 2] information of the two coordinates in 1 / px^2; 0 where there is no match.
        degree: static, at least the largest number of edges that leave one frame (`max_degree`). Edges of a frame
            beyond it are not used.
    """

    source: Array
    target: Array
    pixels: Array
    weights: Array
    degree: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Variables:
    """v frames as they are, or as they are estimated.

    Attributes:
        poses: world-to-camera SE3 [v].
        inverse_depth: [v, h, w] 1 / z-depth, positive.
        lens: [v, 4] fx fy cx cy in pixels of the h x w grid.
        prior_fit: [v, 2] scale and shift: inverse depth is drawn to scale * prior + shift.
    """

    poses: jaxlie.SE3
    inverse_depth: Array
    lens: Array
    prior_fit: Array

    @classmethod
    def start(cls, cameras: Cameras, inverse_depth: Float[Array, "v h w"]) -> Variables:
        """From cameras [v] and inverse depth; scale 1 and shift 0."""
        height, width = inverse_depth.shape[1:]
        fit = jnp.tile(jnp.array([1.0, 0.0], jnp.float32), (len(cameras), 1))
        return cls(cameras.as_se3(), inverse_depth, cameras.pixel_intrinsics(height, width), fit)

    def cameras(self) -> Cameras:
        """The same poses and lenses as `Cameras` [v]."""
        height, width = self.inverse_depth.shape[1:]
        size = jnp.array([width, height, width, height], jnp.float32)
        return Cameras.from_se3(self.poses, (self.lens + jnp.array([0.0, 0.0, 0.5, 0.5])) / size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Priors:
    """What is known before any match is looked at. Zero information: nothing.

    Attributes:
        poses: world-to-camera SE3 [v], commanded or measured.
        pose_information: [v, 6] of translation (1 / length^2) and rotation (1 / rad^2), in camera axes.
        fixed: [v] bool, poses that hold the gauge: they are not moved at all.
        inverse_depth: [v, h, w], from a sensor, the map, or a depth network.
        depth_information: [v, h, w] in length^2; 0 where nothing is known.
        fit_information: [v, 2] of scale (about 1) and shift (about 0) of the depth prior, where they are solved for.
        lens: [v, 4] calibration in pixels.
        lens_information: [4] of log fx, log fy, and the centre (1 / px^2), where the lens is solved for.
    """

    poses: jaxlie.SE3
    pose_information: Array
    fixed: Array
    inverse_depth: Array
    depth_information: Array
    fit_information: Array
    lens: Array
    lens_information: Array

    @classmethod
    def none(cls, start: Variables, num_fixed: int = 1) -> Priors:
        """No prior at all but a gauge: the first `num_fixed` poses of `start` stay."""
        frames = jnp.arange(len(start.lens))
        return cls(
            poses=start.poses,
            pose_information=jnp.zeros((len(frames), 6), jnp.float32),
            fixed=frames < num_fixed,
            inverse_depth=start.inverse_depth,
            depth_information=jnp.zeros_like(start.inverse_depth),
            fit_information=jnp.zeros((len(frames), 2), jnp.float32),
            lens=start.lens,
            lens_information=jnp.zeros(4, jnp.float32),
        )

    def with_poses(
        self, cameras: Cameras, translation_sigma: float, rotation_sigma: float, fixed: Bool[Array, " v"] | None = None
    ) -> Priors:
        """Poses are those of `cameras`, up to standard deviations in length and radians."""
        sigma = jnp.array([translation_sigma] * 3 + [rotation_sigma] * 3, jnp.float32)
        information = jnp.broadcast_to(1 / sigma**2, (len(cameras), 6))
        kept = self.fixed if fixed is None else fixed
        return replace(self, poses=cameras.as_se3(), pose_information=information, fixed=kept)

    def with_depth(self, depth: Float[Array, "v h w"], relative_sigma: float | Float[Array, "v h w"]) -> Priors:
        """z-depth (0 or not finite where unknown), up to a relative standard deviation."""
        known = jnp.isfinite(depth) & (depth > 0)
        inverse = 1 / jnp.where(known, depth, 1.0)
        information = jnp.where(known, 1 / (relative_sigma * inverse) ** 2, 0.0)
        return replace(self, inverse_depth=inverse, depth_information=information)


def max_degree(source: Int[Array | np.ndarray, " e"], num_frames: int) -> int:
    """The largest number of edges that leave one frame, of concrete numbers; at least 1."""
    source = np.asarray(source)
    return int(np.bincount(source[(source >= 0) & (source < num_frames)], minlength=1).max(initial=1))


def slots_by_source(
    source: Int[Array, " e"], target: Int[Array, " e"], num_frames: int, degree: int
) -> Int[Array, "v d"]:
    """The edges that leave each frame, in their order; e where there is none (or no more). e is at least 1."""
    num_edges = source.shape[0]
    usable = (source >= 0) & (source < num_frames) & (target >= 0) & (target < num_frames) & (source != target)
    sources = jnp.where(usable, source, num_frames)
    order = jnp.argsort(sources, stable=True)
    first = jnp.searchsorted(sources[order], jnp.arange(num_frames))
    place = first[:, None] + jnp.arange(degree)
    edge = order[jnp.minimum(place, num_edges - 1)]
    held = (place < num_edges) & (sources[edge] == jnp.arange(num_frames)[:, None])
    return jnp.where(held, edge, num_edges)

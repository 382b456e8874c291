"""Spatial consistency as a loss, through the differentiable renderer; off by default (weights of zero).

Both terms look at single views of the frames that the network's estimate of the clean latents decodes to, and are
computed for one clip. Neither is in the paper.

Reprojection: the points of one frame, with that frame's colours, are rendered into the camera of another, which must
show the same there. Depth is the example's own, so colours alone are learnt:

    mean over static pixels seen by both of | render(points of i, colours of frame i; camera j) - frame j |^2        (1)

Camera pose: a frame whose content is shifted looks as if filmed from elsewhere. With J the derivative of the map's
projection by the camera, and e the error of the frame where the map is seen, one step of Gauss and Newton says by how
much the camera seems to be off, which is zero for the true frame:

    xi = (J^T J + damping)^-1 J^T e,      loss = mean xi^2                                                           (2)

J is taken by central differences: it is a constant of the example, and the renderer has no forward mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float

from spatia_jax import splat
from spatia_jax.cameras import Cameras
from spatia_jax.data.conditioning import Sequence
from spatia_jax.errors import InputError
from spatia_jax.memory import PointMap
from spatia_jax.splat import SplatConfig

_TO, _FROM = range(2)  # purposes folded into the key


@dataclass(frozen=True)
class ConsistencyConfig:
    """Weights of the terms in the loss, and how they are measured.

    Attributes:
        reprojection, pose: weights of (1) and (2); 0: left out.
        depth_tolerance: relative; points farther behind what a pixel shows are hidden from it.
        pose_unit: of xi, in radians and in shares of the median depth; the differences of J are as large.
        damping: of (2), in squared colours of a pixel.
    """

    reprojection: float = 0.0
    pose: float = 0.0
    depth_tolerance: float = 0.02
    pose_unit: float = 0.01
    damping: float = 1e-6

    def __post_init__(self):
        if min(self.reprojection, self.pose) < 0 or min(self.depth_tolerance, self.pose_unit, self.damping) <= 0:
            raise InputError(f"{self}: weights must be at least 0, depth_tolerance, pose_unit and damping above 0")

    @property
    def used(self) -> bool:
        return self.reprojection > 0 or self.pose > 0


def reprojection_error(
    clip: Sequence, frames: Float[Array, "n h w 3"], first_new: int, key: Array, config: ConsistencyConfig,
    splats: SplatConfig,
) -> Float[Array, ""]:  # fmt: skip
    """Equation (1) for a random new frame and a random other one (new or given).

    Args:
        clip: the true views, for depth, cameras and what moves.
        frames: as painted, in [0, 1]; those before `first_new` are given.
    """
    count, height, width = frames.shape[:3]
    to = jax.random.randint(jax.random.fold_in(key, _TO), (), first_new, count)
    # Any other frame: a step around the circle of all.
    source = (to + jax.random.randint(jax.random.fold_in(key, _FROM), (), 1, count)) % count
    depth, cameras = clip.depth.astype(jnp.float32), clip.cameras
    known = (depth > 0) & ~clip.moving
    seen = splat.render(
        cameras[source].unproject(depth[source]).reshape(-1, 3), frames[source].reshape(-1, 3), known[source].ravel(),
        jax.tree.map(lambda leaf: leaf[to][None], cameras), height=height, width=width, config=splats,
    )  # fmt: skip
    near = jnp.abs(seen.depth[0] - depth[to]) < config.depth_tolerance * depth[to]
    both = jax.lax.stop_gradient(seen.coverage[0] * (known[to] & near))[..., None]
    color = seen.color[0] / jnp.maximum(jax.lax.stop_gradient(seen.coverage[0]), 1e-3)[..., None]
    return _mean(both * jnp.square(color - frames[to]), both)


def pose_error(
    clip: Sequence, point_map: PointMap, frames: Float[Array, "n h w 3"], first_new: int, key: Array,
    config: ConsistencyConfig, splats: SplatConfig,
) -> Float[Array, ""]:  # fmt: skip
    """Equation (2) for a random new frame, in squared units of `config.pose_unit`."""
    height, width = frames.shape[1:3]
    view = jax.random.randint(jax.random.fold_in(key, _TO), (), first_new, len(frames))
    camera, depth = clip.cameras[view], clip.depth[view].astype(jnp.float32)
    size = jnp.nanmedian(jnp.where(depth > 0, depth, jnp.nan))
    unit = config.pose_unit * jnp.where(jnp.arange(6) < 3, size, 1.0)  # of a twist: translation, then rotation
    twists = jnp.concatenate([jnp.diag(unit), -jnp.diag(unit)])
    moved = jax.vmap(lambda twist: Cameras.from_se3(jaxlie.SE3.exp(twist) @ camera.as_se3(), camera.intrinsics))(twists)
    seen = splat.render(
        point_map.positions, point_map.colors, point_map.valid, moved, height=height, width=width, config=splats
    )
    static = (~clip.moving[view] & (seen.coverage > 0.5).all(0))[..., None]
    ahead, behind = jnp.split(seen.color / jnp.maximum(seen.coverage, 1e-3)[..., None], 2)
    slopes = jax.lax.stop_gradient(static * (ahead - behind) / 2).reshape(6, -1)
    truth = clip.frames[view].astype(jnp.float32) / 255
    error = (static * (frames[view] - truth)).reshape(-1)
    pixels = jnp.maximum(static.sum(), 1)
    normal = slopes @ slopes.T / pixels + config.damping * jnp.eye(6)
    return jnp.mean(jnp.square(jnp.linalg.solve(normal, slopes @ error / pixels)))


def _mean(values: Array, weight: Array) -> Array:
    return values.sum() / jnp.maximum(weight.sum() * values.shape[-1], 1.0)

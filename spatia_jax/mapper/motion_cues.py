"""What the motion network is shown of keyframes: how each differs from the map and from the views before and after.

All of it at half the resolution, along the depth that the keyframe is thought to have. A static pixel differs little
from any of them; a thing that moves differs from the map and, at its front and its back, from the views beside it. None
of these is proof: depth and poses are a little wrong, shadows move too. The network weighs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.mapper.motion import MotionConfig, disagreement, halve, local_contrast, sample, shown_by_map
from spatia_jax.mapper.reprojection import pixel_grid, warp

OFFSETS = (-2, -1, 1, 2)  # the views that a keyframe is compared with; two views lie before the first keyframe
NUM_BEFORE = 2
_MAX_LOG_RATIO = 0.5  # of depths; beyond, more says no more
_NEAREST = 1e-2  # depth for what has none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cues:
    """What is known of k keyframes; y = h / 2, x = w / 2.

    Attributes:
        frames: [k, y, x, 3] in [0, 1].
        differences: [k, y, x, 5, 3] colours of the map, and of the views at `OFFSETS`, minus the keyframe's; 0 where
            they do not show the pixel.
        scalars: [k, y, x, 13] in [-1, 1]: disagreement (`motion.disagreement`), local contrast, share that the map
            covers, log depth of the map against the keyframe's, 1 / (1 + depth), and for each of the views whether it
            shows the pixel, and log depth there against the depth that the pixel has from there.
    """

    frames: Array
    differences: Array
    scalars: Array


def motion_cues(
    config: MotionConfig,
    frames: Float[Array, "k h w 3"],
    depth: Float[Array, "k h w"],
    cameras: Cameras,
    map_color: Float[Array, "k h w 3"],
    map_depth: Float[Array, "k h w"],
    frames_before: Float[Array, "2 h w 3"],
    cameras_before: Cameras,
) -> Cues:
    """
    Args:
        frames, frames_before, map_color: colours in [0, 1]; the map's are read where it has a depth.
        depth: positive, the estimate for every keyframe; h and w are even.
        cameras: Cameras [k]; cameras_before: Cameras [2] of the views before the first keyframe.
        map_depth: 0 where the map shows nothing.
    """
    shown, share = shown_by_map(map_color, map_depth > 0)
    behind = halve(map_depth) / jnp.maximum(share, 1e-3)
    return cues_of_halves(
        config, halve(frames), halve(depth), cameras, shown, behind, share, halve(frames_before), cameras_before
    )


def cues_of_halves(
    config: MotionConfig,
    color: Float[Array, "k y x 3"],
    depth: Float[Array, "k y x"],
    cameras: Cameras,
    map_color: Float[Array, "k y x 3"],
    map_depth: Float[Array, "k y x"],
    share: Float[Array, "k y x"],
    before: Float[Array, "2 y x 3"],
    cameras_before: Cameras,
) -> Cues:
    """The same of pictures that are at half the resolution already; share: of each pixel, that the map covers."""
    near, covered = jnp.maximum(depth, _NEAREST), share > 0.5
    evidence = disagreement(config, color, near, cameras, map_color, share > 0.9)
    with_map = jnp.where(covered[..., None], map_color - color, 0.0)
    views, valid, ratios = _against_views(color, near, cameras, before, cameras_before)
    alone = [
        2 * evidence,
        local_contrast(color, config.window),
        share,
        _log_ratio(jnp.where(covered, map_depth, near), near),
        1 / (1 + near),
    ]
    scalars = jnp.concatenate([jnp.stack(alone, axis=-1), valid.astype(color.dtype), ratios], axis=-1)
    return Cues(color, jnp.concatenate([with_map[..., None, :], views], axis=-2), scalars)


def _against_views(color, depth, cameras: Cameras, before, cameras_before: Cameras) -> tuple[Array, Array, Array]:
    """Differences [k, y, x, o, 3] to the views at `OFFSETS`, whether these show the pixel, and their log depth."""
    k, height, width = depth.shape
    views = jnp.concatenate([before, color])
    # The depth of earlier views is not at hand; 0 is unknown.
    views = jnp.concatenate([views, jnp.concatenate([jnp.zeros_like(before[..., 0]), depth])[..., None]], axis=-1)
    everyone = Cameras.concatenate([cameras_before, cameras])
    grid, lens, poses = pixel_grid(height, width), everyone.pixel_intrinsics(height, width), everyone.as_se3().wxyz_xyz

    def one_pair(i: Array, offset: Array) -> tuple[Array, Array, Array]:
        j = jnp.clip(i + offset, 0, len(views) - 1)
        relative = (jaxlie.SE3(poses[j]) @ jaxlie.SE3(poses[i]).inverse()).as_matrix()[:3]
        z = views[i, ..., 3].ravel()
        (u, v), ratio, _, _ = warp(relative, 1 / z, lens[i], lens[j], grid)
        inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1) & (ratio > 0) & (j == i + offset)
        there = sample(views[j], u, v)
        difference = jnp.where(inside[:, None], there[:, :3] - views[i, ..., :3].reshape(-1, 3), 0.0)
        measured = inside & (there[:, 3] > 0)
        log_ratio = _log_ratio(jnp.where(measured, there[:, 3], 1.0), jnp.where(measured, ratio * z, 1.0))
        return (
            difference.reshape(height, width, 3), inside.reshape(height, width), log_ratio.reshape(height, width)
        )  # fmt: skip

    def one_keyframe(i: Array) -> tuple[Array, Array, Array]:
        return jax.vmap(one_pair, (None, 0), (2, 2, 2))(i, jnp.array(OFFSETS))

    return jax.lax.map(one_keyframe, NUM_BEFORE + jnp.arange(k))


def _log_ratio(one: Array, other: Array) -> Array:
    """log(one / other), in units of what is much: -1 to 1."""
    return jnp.clip(jnp.log(one / other) / _MAX_LOG_RATIO, -1, 1)

"""What moves: pixels that no depth explains in the other views of a clip, and in the map.

A static surface point looks the same from everywhere, if its depth is right. So each pixel is followed into the other
keyframes at several depths around the estimated one (a small plane sweep), and compared there, and with what the map
shows in its own place. A pixel is taken for moving when even its best depth leaves a colour difference that more than
`1 - quantile` of the views agree on: a background that something hides in one view is not blamed for it.

Where colours change quickly, a small misalignment makes a large difference; a share of the local contrast is therefore
forgiven. What this cannot see: a moving thing in the colours of what is behind it. What it mistakes: moving shadows.

This rule needs no weights. Where an experiment has a motion network, the same evidence is among what that is shown
(`motion_cues.py`), and the network decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Bool, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper.filters import box_mean
from spatia_jax.mapper.reprojection import pixel_grid, warp

_MAX_DIFFERENCE = 0.5  # of colours; beyond, one pixel says no more
_HALVING = 2  # the comparison is made at half the resolution


@dataclass(frozen=True)
class MotionConfig:
    """Attributes:
    depth_reach: log of the largest factor on the estimated depth that is tried.
    num_depths: how many depths are tried.
    quantile: of the differences in the views that can judge, the one that counts.
    occlusion: a pixel that lies behind another view's surface by this share of its depth is hidden there.
    window: pixels (of the halved image), side of the square over which differences are averaged.
    contrast: share of the local contrast that is forgiven.
    threshold: colour distance (RGB in [0, 1]) from which on a pixel moves.
    """

    depth_reach: float = 0.15
    num_depths: int = 9
    quantile: float = 0.35
    occlusion: float = 0.1
    window: int = 5
    contrast: float = 0.15
    threshold: float = 0.12

    def __post_init__(self):
        if self.window % 2 == 0:
            raise InputError(f"motion.window must be odd, got {self.window}")


def moving_pixels(
    config: MotionConfig,
    frames: Float[Array, "k h w 3"],
    depth: Float[Array, "k h w"],
    cameras: Cameras,
    map_color: Float[Array, "k h w 3"],
    covered: Bool[Array, "k h w"],
) -> Bool[Array, "k h w"]:
    """
    Args:
        frames, map_color: colours in [0, 1]; the map's are read where `covered`.
        depth: positive, the estimate for every frame; h and w are even.
    """
    frames, size = halve(frames), (1, 3, 3)
    shown, share = shown_by_map(map_color, covered)
    evidence = disagreement(config, frames, halve(depth), cameras, shown, share > 0.9)
    contrast = local_contrast(frames, config.window)
    moves = (evidence - config.contrast * contrast > config.threshold).astype(jnp.float32)
    # Opening: what is less than three pixels wide is an edge, not a thing.
    eroded = jax.lax.reduce_window(moves, jnp.inf, jax.lax.min, size, (1,) * 3, "SAME")
    opened = jax.lax.reduce_window(eroded, -jnp.inf, jax.lax.max, size, (1,) * 3, "SAME")
    return jnp.repeat(jnp.repeat(opened > 0, _HALVING, axis=1), _HALVING, axis=2)


def disagreement(
    config: MotionConfig,
    frames: Float[Array, "k h w 3"],
    depth: Float[Array, "k h w"],
    cameras: Cameras,
    map_color: Float[Array, "k h w 3"],
    covered: Bool[Array, "k h w"],
) -> Float[Array, "k h w"]:
    """The colour difference that remains at the best depth; 0 where fewer than two views can judge."""
    k, height, width = depth.shape
    grid, lens = pixel_grid(height, width), cameras.pixel_intrinsics(height, width)
    poses = cameras.as_se3().wxyz_xyz
    factors = jnp.exp(jnp.linspace(-config.depth_reach, config.depth_reach, config.num_depths))

    def in_view(i, j, factor):
        """Difference and whether view j can judge, for the pixels of i."""
        relative = (jaxlie.SE3(poses[j]) @ jaxlie.SE3(poses[i]).inverse()).as_matrix()[:3]
        z = (factor * depth[i]).ravel()
        (u, v), ratio, _, _ = warp(relative, 1 / z, lens[i], lens[j], grid)
        inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1) & (ratio > 0)
        there = sample(jnp.concatenate([frames[j], depth[j][..., None]], axis=-1), u, v)
        hidden = ratio * z > (1 + config.occlusion) * there[:, 3]
        difference = jnp.linalg.norm(there[:, :3] - frames[i].reshape(-1, 3) + 1e-9, axis=-1)
        return difference.reshape(height, width), (inside & ~hidden & (i != j)).reshape(height, width)

    def one_frame(i):
        own = jnp.linalg.norm(map_color[i] - frames[i] + 1e-9, axis=-1)

        def at_depth(factor):
            difference, judges = jax.vmap(lambda j: in_view(i, j, factor))(jnp.arange(k))
            difference = jnp.concatenate([difference, own[None]])
            judges = jnp.concatenate([judges, covered[i][None]])
            difference = box_mean(jnp.minimum(difference, _MAX_DIFFERENCE), config.window)
            ordered = jnp.sort(jnp.where(judges, difference, jnp.inf), axis=0)
            count = judges.sum(axis=0)
            rank = jnp.floor(config.quantile * count).astype(jnp.int32)
            chosen = jnp.take_along_axis(ordered, rank[None], axis=0)[0]
            return jnp.where(count >= 2, chosen, jnp.inf)

        best = jax.lax.map(at_depth, factors).min(axis=0)
        return jnp.where(jnp.isfinite(best), best, 0.0)

    return jax.lax.map(one_frame, jnp.arange(k))


def sample(image: Float[Array, "h w c"], u: Float[Array, " n"], v: Float[Array, " n"]) -> Float[Array, "n c"]:
    """Bilinear; beyond the border its values repeat."""
    height, width = image.shape[:2]
    column, row = jnp.clip(jnp.floor(u), 0, width - 2), jnp.clip(jnp.floor(v), 0, height - 2)
    a, b = jnp.clip(u - column, 0, 1)[:, None], jnp.clip(v - row, 0, 1)[:, None]
    flat, at = image.reshape(height * width, -1), (row * width + column).astype(jnp.int32)
    above = (1 - a) * flat[at] + a * flat[at + 1]
    below = (1 - a) * flat[at + width] + a * flat[at + width + 1]
    return (1 - b) * above + b * below


def shown_by_map(
    map_color: Float[Array, "k h w 3"], covered: Bool[Array, "k h w"]
) -> tuple[Float[Array, "k y x 3"], Float[Array, "k y x"]]:
    """Colours of the map at half the resolution, and the share of each pixel that it covers."""
    share = halve(covered.astype(jnp.float32))
    return halve(jnp.where(covered[..., None], map_color, 0.0)) / jnp.maximum(share, 1e-3)[..., None], share


def local_contrast(frames: Float[Array, "k y x 3"], window: int) -> Float[Array, "k y x"]:
    """How much colours change from pixel to pixel, meant over a window."""
    size = (1, 3, 3, 1)
    peaks = jax.lax.reduce_window(frames, -jnp.inf, jax.lax.max, size, (1,) * 4, "SAME")
    valleys = jax.lax.reduce_window(frames, jnp.inf, jax.lax.min, size, (1,) * 4, "SAME")
    return box_mean((peaks - valleys).max(-1), window)


def halve(images: Float[Array, "k h w *c"]) -> Float[Array, "k y x *c"]:
    """Means of 2 x 2 pixels."""
    k, height, width = images.shape[:3]
    cells = images.reshape(k, height // _HALVING, _HALVING, width // _HALVING, _HALVING, *images.shape[3:])
    return cells.mean((2, 4))

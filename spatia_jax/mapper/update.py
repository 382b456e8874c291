"""The memory update of one clip, first form: commanded cameras are trusted, depth comes from a prior (issue 2, item 8).

    depth prior ─► align to the map ─► leave out what moves ─► keep what several views agree on ─► points

Everything is a pure function of arrays with static shapes, so it runs inside `clip_step` under `jit` and `scan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper import alignment, filters
from spatia_jax.mapper.tracking import TrackingConfig


@dataclass(frozen=True)
class MapperConfig:
    """Tolerances are relative (log) depths unless they say otherwise.

    Attributes:
        fit_stride: pixels between those that the alignment looks at.
        fit_iterations: of robust least squares.
        fit_prior_share: how strongly a frame's fit is drawn to its clip's, and that to the identity: as by this share
            of a frame's pixels.
        agree_tolerance: where the aligned prior is this close to the map, the map's depth is kept.
        correction_bins: layers of depth in which the alignment's smooth correction spreads apart.
        motion_color_tolerance: colour distance (RGB in [0, 1]) that, with depth off by `agree_tolerance`, means motion.
        motion_window: pixels, side of the majority filter of the motion mask.
        neighbors: offsets, in keyframes, of the views that are asked to confirm a pixel.
        min_agreements: confirmations needed, or as many as there are views that the pixel falls into.
        view_tolerance: how close two views have to be to agree.
        edge_tolerance: curvature of inverse depth, relative to itself, from which on a pixel lies on a depth edge.
        max_depth: metres; nothing further enters the map.
        covered_weight: factor on the weight of pixels that the map has already; 0 adds new places only.
        free_tolerance: how much nearer than what an earlier view saw there, as a share of its depth, a point must be to
            be refused as standing in space that is known to be free.
        tracking: how cameras are found; None: the commanded ones are trusted.
    """

    fit_stride: int = 2
    fit_iterations: int = 8
    fit_prior_share: float = 0.01
    agree_tolerance: float = 0.15
    correction_bins: int = 6
    motion_color_tolerance: float = 0.25
    motion_window: int = 5
    neighbors: tuple[int, ...] = (-1, 1)
    min_agreements: int = 1
    view_tolerance: float = 0.06
    edge_tolerance: float = 0.1
    max_depth: float = 50.0
    covered_weight: float = 0.25
    free_tolerance: float = 0.15
    tracking: TrackingConfig | None = None

    def __post_init__(self):
        if 0 in self.neighbors:
            raise InputError("neighbors are offsets to other frames: 0 would let every pixel confirm itself")
        if self.motion_window % 2 == 0:
            raise InputError(f"motion_window must be odd, got {self.motion_window}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MapUpdate:
    """What a clip says about the scene.

    Attributes:
        cameras: Cameras[t] that the depth belongs to.
        depth: [t, h, w] z-depth in the map's units; 0 where unknown.
        static: [t, h, w] bool, may enter the map.
        moving: [t, h, w] bool, contradicts the map or was masked.
        weight: [t, h, w] confidence of a point made from this pixel; 0 where not static.
        report: scalars: scale, shift (means over the frames), overlap, inlier_share, moving_share, static_share.
    """

    cameras: Cameras
    depth: Array
    static: Array
    moving: Array
    weight: Array
    report: dict[str, Array]


def update(
    config: MapperConfig,
    depth_frames: Float[Array, "t h w"],
    frames: Float[Array, "t h w 3"],
    cameras: Cameras,
    map_depth: Float[Array, "t h w"],
    map_color: Float[Array, "t h w 3"],
    masks: Bool[Array, "t h w"] | None = None,
    *,
    judge_motion: bool = True,
) -> MapUpdate:
    """Aligned depth of new frames and what of it may enter the map.

    Args:
        depth_frames: what the depth prior says about the frames; not finite or <= 0 counts as unknown.
        frames: colours in [0, 1].
        cameras: Cameras[t], commanded, trusted.
        map_depth: z-depth of the map splatted into the cameras; 0 (or not finite) = hole.
        map_color: its colours in [0, 1], read only where `map_depth` is not a hole.
        masks: True = moving, from the user or a segmenter.
        judge_motion: add to the masks what the residuals against the map say.

    Returns:
        MapUpdate. With no overlap the prior is kept as it is; with nothing valid, nothing is static.
    """
    known = jnp.isfinite(depth_frames) & (depth_frames > 0)
    covered = jnp.isfinite(map_depth) & (map_depth > 0)
    depth_frames = jnp.where(known, depth_frames, 1.0)
    map_depth = jnp.where(covered, map_depth, 1.0)
    masked = jnp.zeros_like(known) if masks is None else masks
    seen = jnp.isfinite(frames).all(-1)
    frames = jnp.where(seen[..., None], frames, 0.0)

    overlap = known & covered & ~masked
    aligned, fit = _align(config, depth_frames, map_depth, overlap)
    log_ratio = jnp.log(map_depth / aligned)
    agrees = overlap & (jnp.abs(log_ratio) < config.agree_tolerance)
    moving = masked
    if judge_motion:
        moving |= filters.motion_mask(
            frames,
            map_color,
            log_ratio,
            overlap & seen,
            color_tolerance=config.motion_color_tolerance,
            depth_tolerance=config.agree_tolerance,
            window=config.motion_window,
        )
    # The map fills in where the prior knows nothing, and wins where the two agree.
    depth = jnp.where(agrees | (covered & ~known), map_depth, aligned)

    usable = (known | covered) & seen & ~moving & (depth < config.max_depth)
    usable &= ~filters.depth_edges(depth, config.edge_tolerance)
    agreements, inside = filters.view_agreement(depth, usable, cameras, config.neighbors, config.view_tolerance)
    static = usable & (agreements >= jnp.minimum(config.min_agreements, inside))
    # One view counts for itself; depth noise grows with the square of depth.
    confidence = (1 + agreements) / (1 + inside) / (1 + jnp.square(depth))
    weight = jnp.where(static, confidence * jnp.where(covered, config.covered_weight, 1.0), 0.0)
    report = {
        "scale": fit.scale.mean(),
        "shift": fit.shift.mean(),
        "overlap": overlap.mean(),
        "inlier_share": agrees.sum() / jnp.maximum(overlap.sum(), 1),
        "moving_share": moving.mean(),
        "static_share": static.mean(),
    }
    return MapUpdate(cameras, jnp.where(known | covered, depth, 0.0), static, moving, weight, report)


def keyframe_numbers(num_frames: int, stride: int) -> tuple[int, ...]:
    """The frames of a clip that are mapped: every `stride`-th, back from the last."""
    return tuple(range((num_frames - 1) % stride, num_frames, stride))


def select_points(
    mapped: MapUpdate, frames: Float[Array, "t h w 3"], pixel_stride: int
) -> tuple[Float[Array, "m 3"], Float[Array, "m 3"], Float[Array, " m"], Bool[Array, " m"], Int[Array, " m"]]:
    """Points for `memory.insert`: every `pixel_stride`-th pixel.

    Args:
        frames: colours in [0, 1].

    Returns:
        positions [m, 3] in the world, colors [m, 3], weights [m], valid [m], and keyframes [m] int32, the number of
        the point's frame. Static shapes: what is not valid is still in the arrays.
    """
    start = pixel_stride // 2

    def thin(images):
        return images[:, start::pixel_stride, start::pixel_stride]

    weight = thin(mapped.weight)
    positions = thin(mapped.cameras.unproject(mapped.depth))
    keyframes = jnp.broadcast_to(jnp.arange(len(weight), dtype=jnp.int32)[:, None, None], weight.shape)
    colors = jnp.nan_to_num(thin(frames))
    return positions.reshape(-1, 3), colors.reshape(-1, 3), weight.ravel(), weight.ravel() > 0, keyframes.ravel()


def _align(config: MapperConfig, depth, map_depth, overlap) -> tuple[jax.Array, alignment.Fit]:
    """Prior depth after scale, shift and smooth correction, [t, h, w], and the fit of every frame."""
    sparse = (slice(None), slice(None, None, config.fit_stride), slice(None, None, config.fit_stride))
    fit = alignment.fit_clip(
        depth[sparse],
        map_depth[sparse],
        overlap[sparse],
        iterations=config.fit_iterations,
        prior_share=config.fit_prior_share,
    )
    aligned = jax.vmap(alignment.Fit.apply)(fit, depth)
    residual = jnp.log(map_depth / aligned)
    trusted = overlap & (jnp.abs(residual) < config.agree_tolerance)

    def spread_one(residual, valid, log_depth):
        return alignment.correction_field(residual, valid, log_depth, config.correction_bins)

    spread = jax.vmap(spread_one)
    return aligned * jnp.exp(spread(residual, trusted, jnp.log(aligned))), fit

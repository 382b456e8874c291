"""Where the camera really was: dense bundle adjustment of a clip's keyframes against the map and each other.

The commanded path is a prior and no more. Every keyframe is matched with

    the map          splatted into the camera where the keyframe is thought to be: its depth is known and its pose is
                     exact, so each match says where the keyframe is relative to the map. This closes loops, too: what is
                     seen again is in the map
    its neighbours   which tie the keyframes together where the map shows nothing
    an anchor        the last frame of the history, so that a clip begins where the one before ended

and all of them are adjusted together: poses of the keyframes, depth of every pixel. Map and anchor stay where they are;
they hold the gauge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust
from spatia_jax.mapper.problem import Matches, Priors, Variables
from spatia_jax.mapper.reprojection import pixel_grid, warp


@dataclass(frozen=True)
class TrackingConfig:
    """Attributes:
    stride: pixels between those whose depth is adjusted.
    match_px: standard deviation of a good match.
    robust_px: residual at which a match counts half.
    map_depth_sigma, prior_depth_sigma: relative, of the map's depth, and of the depth network's once it is aligned.
    prior_meters, prior_degrees: how far a clip may be from where it was sent.
    iterations: of the adjustment.
    """

    stride: int = 4
    match_px: float = 0.5
    robust_px: float = 1.0
    map_depth_sigma: float = 0.02
    prior_depth_sigma: float = 0.1
    prior_meters: float = 0.1
    prior_degrees: float = 3.0
    iterations: int = 8

    def __post_init__(self):
        if self.stride < 1:
            raise InputError(f"tracking.stride is {self.stride}; it must be at least 1 pixel")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """v pictures with what is known of their depth.

    Attributes:
        frames: [v, h, w, 3] in [0, 1].
        depth: [v, h, w]; 0 where unknown.
        cameras: Cameras [v].
    """

    frames: Array
    depth: Array
    cameras: Cameras


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Track:
    """What the adjustment found.

    Attributes:
        cameras: Cameras [k] of the keyframes.
        inverse_depth, depth_information: [k, p, q] of every `stride`-th pixel.
        residual: [e, p, q] pixels between each match and where a static scene would have put it; weight: [e, p, q].
        edges: [e, 2] node numbers: 0 the anchor, then k keyframes, then k renderings of the map.
    """

    cameras: Cameras
    inverse_depth: Array
    depth_information: Array
    residual: Array
    weight: Array
    cost: Array


def edges(num_keyframes: int) -> np.ndarray:
    """[e, 2] pairs of nodes that are matched, in both directions."""
    k = num_keyframes
    pairs = [(1 + k + i, 1 + i) for i in range(k)]  # map and keyframe
    pairs += [(1 + i, 2 + i) for i in range(k - 1)]
    pairs += [(0, 1 + i) for i in range(min(k, 2))]
    return np.array(pairs + [(j, i) for i, j in pairs], np.int32)


def track(config: TrackingConfig, match: Callable, anchor: View, keyframes: View, rendering: View) -> Track:
    """
    Args:
        match: (source, target, where source is known, where target is known) -> (pixels, weights); under vmap.
        anchor: one view with its true camera.
        keyframes: with the depth that they are thought to have, in the map's scale, and cameras to start from.
        rendering: the map in the cameras of the keyframes.
    """
    k, step = len(keyframes.depth), config.stride
    height, width = keyframes.depth.shape[1:]
    nodes = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), anchor, keyframes, rendering)
    pairs = edges(k)
    source, target = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1])
    known = jnp.concatenate([jnp.ones((1 + k, height, width)), (rendering.depth > 0).astype(jnp.float32)])
    where = jnp.where(nodes.depth > 0, nodes.depth, jnp.median(nodes.depth))
    grid = pixel_grid(height, width)
    lenses = nodes.cameras.pixel_intrinsics(height, width)

    def guess(i, j):
        relative = (jaxlie.SE3(nodes.cameras.as_se3().wxyz_xyz[j]) @ jaxlie.SE3(nodes.cameras.as_se3().wxyz_xyz[i]).inverse()).as_matrix()[:3]
        there, ratio, _, _ = warp(relative, 1 / where[i].ravel(), lenses[i], lenses[j], grid)
        return jnp.clip(jnp.where(ratio > 0, there - grid, 0.0).T.reshape(height, width, 2), -width / 2, width / 2)

    pixels, weights = jax.lax.map(
        lambda e: match(nodes.frames[e[0]], nodes.frames[e[1]], known[e[0]], known[e[1]], guess(*e), guess(e[1], e[0])), (source, target)
    )
    start = step // 2
    thin = (slice(None), slice(start, None, step), slice(start, None, step))
    pixels = (pixels[thin] - start) / step
    weights = weights[thin] * (step / config.match_px) ** 2
    matches = Matches(source, target, pixels, jnp.stack([weights, weights], -1), int(np.bincount(pairs[:, 0]).max()))

    depth = nodes.depth[thin]
    lens = nodes.cameras.pixel_intrinsics(height, width)
    lens = jnp.concatenate([lens[:, :2], lens[:, 2:] - start], axis=-1) / step
    filled = jnp.where(depth > 0, depth, jnp.median(depth))
    variables = Variables(nodes.cameras.as_se3(), 1 / filled, lens, jnp.tile(jnp.array([1.0, 0.0]), (len(depth), 1)))
    sigma = jnp.where(jnp.arange(1 + 2 * k) > k, config.map_depth_sigma, config.prior_depth_sigma)
    is_keyframe = (jnp.arange(1 + 2 * k) > 0) & (jnp.arange(1 + 2 * k) <= k)
    priors = Priors.none(variables).with_poses(
        nodes.cameras, config.prior_meters, float(np.radians(config.prior_degrees)), ~is_keyframe
    ).with_depth(depth, sigma[:, None, None])
    solution = adjust(
        matches, priors, variables, AdjustmentConfig(iterations=config.iterations, robust_px=config.robust_px / step)
    )
    found = solution.variables
    return Track(
        Cameras.from_se3(jaxlie.SE3(found.poses.wxyz_xyz[1 : 1 + k]), keyframes.cameras.intrinsics),
        found.inverse_depth[1 : 1 + k],
        solution.depth_information[1 : 1 + k],
        pixels, weights, solution.costs,
    )  # fmt: skip


def follow(start: Cameras, keyframes: tuple[int, ...], found: Cameras) -> Cameras:
    """All cameras [t] of a clip, corrected as their keyframes [k] are; before the first keyframe, from nothing on.

    The corrections T_found T_start^-1 are interpolated in their tangent space.
    """
    correction = (found.as_se3() @ start[jnp.array(keyframes)].as_se3().inverse()).log()
    times = jnp.array((-1.0, *keyframes) if keyframes[0] else keyframes, jnp.float32)
    values = jnp.concatenate([jnp.zeros((1, 6)), correction]) if keyframes[0] else correction
    between = jax.vmap(lambda v: jnp.interp(jnp.arange(len(start), dtype=jnp.float32), times, v), 1, 1)(values)
    return Cameras.from_se3(jaxlie.SE3.exp(between) @ start.as_se3(), start.intrinsics)


def moved(cameras: Cameras, path_from_map: Float[Array, "3 4"]) -> Cameras:
    """Cameras of a path, given in the path's own coordinates, in those of the map."""
    rotation, translation = cameras.rotation @ path_from_map[:, :3], cameras.transform(path_from_map[None, :, 3])
    return Cameras(jnp.concatenate([rotation, jnp.swapaxes(translation, -1, -2)], axis=-1), cameras.intrinsics)


def path_from_map(told: Cameras, found: Cameras) -> Float[Array, "3 4"]:
    """What makes one told camera the found one: told = found after `moved`."""
    return (told.as_se3().inverse() @ found.as_se3()).as_matrix()[:3]

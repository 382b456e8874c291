"""Where the camera really was: dense bundle adjustment of a clip's keyframes against the map and each other.

The commanded path is a prior and no more. Every keyframe is matched with

    the map          splatted into the camera where the keyframe is thought to be: its depth is known and its pose is
                     exact, so each match says where the keyframe is relative to the map. This closes loops, too: what
                     is seen again is in the map
    its neighbours   which tie the keyframes together where the map shows nothing
    an anchor        the last frame of the history, so that a clip begins where the one before ended

and all of them are adjusted together: poses of the keyframes, depth of every pixel. Map and anchor stay where they are;
they hold the gauge, and the scale is the map's. Points that were given (the photo's) are where they are; those that
earlier clips added stand where a drifting camera put them, so matches with them count for less, and so do those between
frames, whose depth is hardly known. That is what takes a drift back when the camera returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust
from spatia_jax.mapper.matching import Matcher, PatchMatcher
from spatia_jax.mapper.motion import MotionConfig
from spatia_jax.mapper.problem import Matches, Priors, Variables, max_degree
from spatia_jax.pyramid import fill_holes

_WHOLE = 0.95  # share of a window that the map must cover for a match of it to count
_WINDOW = 9  # pixels
_NOISE = 0.02  # grey value per pixel: slopes below it are noise


@dataclass(frozen=True)
class TrackingConfig:
    """Attributes:
    matcher: where the correspondences come from.
    motion: what is taken for moving, once the cameras are known.
    stride: pixels between those whose depth is adjusted.
    match_px: standard deviation of a match of full weight, in pixels of the image.
    robust_px: residual at which a match counts half.
    map_depth_sigma, prior_depth_sigma: relative, of the map's depth, and of the depth network's once it is aligned.
    prior_meters, prior_degrees: standard deviation of how far a clip is from where it was sent.
    correlated: pixels that err alike, so that many of them are one measurement against the prior of a pose.
    generated_trust: weight of a match with what earlier clips added to the map, or between frames, where one with
        observed points has 1.
    rounds: how often the map is drawn where the keyframes are thought to be, matched and adjusted.
    kernel_widths: a round adjusts once for each, with a robust kernel that many times as wide: far from the solution
        good matches look like wrong ones.
    iterations: of each adjustment.
    carve_tolerance: a point of the map is seen through where a keyframe's static surface lies behind it by this share
        of its depth, in another colour.
    carve_views: keyframes that have to see through a generated point before it is removed.
    carve_observed_views: the same for an observed or edited one.
    """

    matcher: PatchMatcher = PatchMatcher(finest=0)
    motion: MotionConfig = MotionConfig()
    stride: int = 4
    match_px: float = 0.5
    robust_px: float = 1.0
    map_depth_sigma: float = 0.02
    prior_depth_sigma: float = 0.1
    prior_meters: float = 0.06
    prior_degrees: float = 1.0
    correlated: float = 30.0
    generated_trust: float = 0.1
    rounds: int = 2
    kernel_widths: tuple[float, ...] = (3.0, 1.0)
    iterations: int = 5
    carve_tolerance: float = 0.2
    carve_views: int = 2
    carve_observed_views: int = 3

    def __post_init__(self):
        if self.stride < 1:
            raise InputError(f"tracking.stride is {self.stride}; it must be at least 1 pixel")
        if min(self.match_px, self.robust_px, self.map_depth_sigma, self.prior_depth_sigma) <= 0:
            raise InputError("tracking: match_px, robust_px and the depth sigmas are standard deviations, above 0")
        if self.rounds < 1 or not self.kernel_widths:
            raise InputError(f"tracking: rounds {self.rounds} and kernel_widths {self.kernel_widths}: one at least")
        if not 0 <= self.generated_trust <= 1:
            raise InputError(f"tracking.generated_trust is {self.generated_trust}; it is a share, 0 to 1")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Views:
    """v pictures with what is known of their depth.

    Attributes:
        frames: [v, h, w, 3] in [0, 1].
        depth: [v, h, w]; 0 where unknown.
        cameras: Cameras [v].
        coverage: [v, h, w], 1 where the frame shows something.
        observed: [v, h, w], the share of it that is known from given pictures; at most `coverage`.
        offsets: [v, h, w, 2], how far from a pixel, in pixels, lies what it shows.
    """

    frames: Array
    depth: Array
    cameras: Cameras
    coverage: Array = field(default_factory=lambda: jnp.ones(()))
    observed: Array = field(default_factory=lambda: jnp.ones(()))
    offsets: Array = field(default_factory=lambda: jnp.zeros(()))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Track:
    """What the adjustment found.

    Attributes:
        cameras: Cameras [k] of the keyframes.
        inverse_depth: [k, p, q] of the pixels in the middle of cells of `stride` pixels.
        depth_information: [k, p, q] of each of them, the poses known; prior_information: the share of its prior.
        costs: [iterations + 1].
    """

    cameras: Cameras
    inverse_depth: Array
    depth_information: Array
    prior_information: Array
    costs: Array


def pairs(num_keyframes: int) -> np.ndarray:
    """[p, 2] of nodes that are matched: node 0 is the anchor, then k keyframes, then the map in their k cameras."""
    k = num_keyframes
    with_map = [(1 + k + i, 1 + i) for i in range(k)]
    neighbors = [(1 + i, 2 + i) for i in range(k - 1)]
    with_anchor = [(0, 1 + i) for i in range(min(k, 2))]
    return np.array(with_map + neighbors + with_anchor, np.int32)


def track(config: TrackingConfig, anchor: Views, keyframes: Views, rendering: Views) -> Track:
    """Poses and depth of k keyframes.

    Args:
        anchor: one view, where it was found to be.
        keyframes: with the depth that they are thought to have, in the map's scale, and the cameras they were told.
        rendering: the map in the cameras where the keyframes are thought to be, from which the adjustment starts;
            colours premultiplied by coverage.
    """
    return adjust_views(config, match_views(config, anchor, keyframes, rendering), anchor, keyframes, rendering)


def match_views(config: TrackingConfig, anchor: Views, keyframes: Views, rendering: Views) -> Matches:
    """Matches of all pairs, where both show something; arguments as of `track`."""
    k, (height, width) = len(keyframes.depth), keyframes.depth.shape[1:]
    filled = fill_holes(rendering.frames, rendering.coverage)
    frames = jnp.concatenate([anchor.frames, keyframes.frames, filled])
    grid = (height // config.stride, width // config.stride)
    whole = _middle((_box(rendering.coverage, _WINDOW) > _WHOLE).astype(jnp.float32), grid)
    observed = _middle(_box(jnp.broadcast_to(rendering.observed, rendering.coverage.shape), _WINDOW), grid)
    known = _middle(rendering.depth, grid) > 0
    from_map = whole * known * (config.generated_trust + (1 - config.generated_trust) * observed)
    trust = jnp.concatenate([jnp.ones((1 + k, *grid)), from_map])
    offsets = jnp.broadcast_to(rendering.offsets, (*rendering.depth.shape, 2))
    offsets = jnp.concatenate([jnp.zeros((1 + k, *grid, 2)), _cells(offsets, grid).mean((2, 4)) / config.stride])
    return _match(config, frames, trust, offsets, pairs(k), grid)


def adjust_views(config: TrackingConfig, matches: Matches, anchor: Views, keyframes: Views, rendering: Views) -> Track:
    """Poses and depth of the keyframes from matches; arguments as of `track`."""
    k, (height, width) = len(keyframes.depth), keyframes.depth.shape[1:]
    grid = (height // config.stride, width // config.stride)
    cameras = Cameras.concatenate([anchor.cameras, rendering.cameras, rendering.cameras])
    told = Cameras.concatenate([anchor.cameras, keyframes.cameras, rendering.cameras])
    inverse = jnp.concatenate(
        [jnp.where(view.depth > 0, 1 / view.depth, 0.0) for view in (anchor, keyframes, rendering)]
    )
    inverse = _middle(inverse, grid)
    depth = jnp.where(inverse > 0, 1 / inverse, 0.0)
    start = Variables.start(cameras, jnp.where(inverse > 0, inverse, 1 / jnp.median(keyframes.depth)))
    node = jnp.arange(1 + 2 * k)
    adjusted = (node > 0) & (node <= k)
    sigma = jnp.where(adjusted, config.prior_depth_sigma, config.map_depth_sigma)
    firm = config.correlated**-0.5
    priors = Priors.none(start).with_poses(
        told, config.prior_meters * firm, config.prior_degrees * math.pi / 180 * firm, ~adjusted
    ).with_depth(depth, sigma[:, None, None])  # fmt: skip

    settings = AdjustmentConfig(
        iterations=config.iterations,
        robust_px=config.robust_px / config.stride,
        kernel_widths=config.kernel_widths,
    )
    solution = adjust(matches, priors, start, settings)
    ours = slice(1, 1 + k)
    found = Cameras.from_se3(jaxlie.SE3(solution.variables.poses.wxyz_xyz[ours]), keyframes.cameras.intrinsics)
    return Track(
        found, solution.variables.inverse_depth[ours], solution.depth_information[ours],
        priors.depth_information[ours], solution.costs,
    )  # fmt: skip


def displacements(
    places: Float[Array, "v h w 3"], cameras: Cameras
) -> tuple[Float[Array, "v h w 2"], Float[Array, "v h w"]]:
    """How far from each pixel, in pixels, the place lies that it is said to show, and the place's depth."""
    views, height, width, _ = places.shape
    pixels, depth = jax.vmap(lambda camera, place: camera.project(place, height, width))(
        cameras, places.reshape(views, -1, 3)
    )
    columns, rows = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    return pixels.reshape(views, height, width, 2) - jnp.stack([columns, rows], -1), depth.reshape(views, height, width)


def follow(start: Cameras, keyframes: tuple[int, ...], found: Cameras) -> Cameras:
    """All cameras [t] of a clip, corrected as their keyframes [k] are; before the first keyframe, from nothing on.

    The corrections T_found T_start^-1 are interpolated in their tangent space.
    """
    correction = (found.as_se3() @ start[jnp.array(keyframes)].as_se3().inverse()).log()
    times = jnp.array((-1.0, *keyframes) if keyframes[0] else keyframes, jnp.float32)
    values = jnp.concatenate([jnp.zeros((1, 6)), correction]) if keyframes[0] else correction
    all_times = jnp.arange(len(start), dtype=jnp.float32)
    between = jax.vmap(lambda value: jnp.interp(all_times, times, value), 1, 1)(values)
    return Cameras.from_se3(jaxlie.SE3.exp(between) @ start.as_se3(), start.intrinsics)


def moved(cameras: Cameras, path_from_map: Float[Array, "3 4"]) -> Cameras:
    """Cameras of a path, given in the path's own coordinates, in those of the map."""
    poses = cameras.as_se3() @ Cameras(path_from_map, jnp.ones(4)).as_se3()
    return Cameras.from_se3(poses, cameras.intrinsics)


def path_from_map(told: Cameras, found: Cameras) -> Float[Array, "3 4"]:
    """With this, `moved` makes a told camera the found one."""
    return (told.as_se3().inverse() @ found.as_se3()).as_matrix()[:3]


def _match(
    config: TrackingConfig,
    frames: Float[Array, "n h w 3"],
    trust: Float[Array, "n p q"],
    offsets: Float[Array, "n p q 2"],
    numbers: np.ndarray,
    grid: tuple[int, int],
) -> Matches:
    """Matches of all pairs in both directions, as edges; each weighs by the trust in what it starts and ends on.

    They lead from where the things shown really are to where they really are, `offsets` away from where they show.
    """
    matcher: Matcher = config.matcher
    pixels, weights = matcher(frames, jnp.asarray(numbers), grid)
    weights = weights * (config.stride / config.match_px) ** 2
    edges = np.concatenate([numbers, numbers[:, ::-1]])
    pixels, weights = (jnp.concatenate([both[:, 0], both[:, 1]]) for both in (pixels, weights))
    source, target = jnp.asarray(edges[:, 0]), jnp.asarray(edges[:, 1])
    landed = jnp.round(pixels).astype(jnp.int32)
    column, row = jnp.clip(landed[..., 0], 0, grid[1] - 1), jnp.clip(landed[..., 1], 0, grid[0] - 1)
    both = trust[source] * trust[target[:, None, None], row, column]
    with_map = (edges > len(frames) // 2).any(axis=1)  # anchor and keyframes come first, then as many of the map
    both *= jnp.where(with_map, 1.0, config.generated_trust)[:, None, None]
    weights = weights * both[..., None] * _texture(frames, grid)[source]
    pixels = pixels + offsets[target[:, None, None], row, column] - offsets[source]
    return Matches(source, target, pixels, weights, max_degree(edges[:, 0], len(frames)))


def _middle(images: Float[Array, "v h w"], grid: tuple[int, int]) -> Float[Array, "v p q"]:
    """Means of the pixels in the middle of each cell (four of them if its side is even); 0 where one of them is 0."""
    cells = _cells(images, grid)
    return jnp.where((cells > 0).all((2, 4)), cells.mean((2, 4)), 0.0)


def _cells(images: Float[Array, "v h w *c"], grid: tuple[int, int]) -> Float[Array, "v p m q m *c"]:
    """The pixels in the middle of each cell."""
    step = images.shape[1] // grid[0]
    cells = images.reshape(len(images), grid[0], step, grid[1], step, *images.shape[3:])
    middle = slice((step - 1) // 2, step // 2 + 1)
    return cells[:, :, middle, :, middle]


def _texture(frames: Float[Array, "v h w 3"], grid: tuple[int, int]) -> Float[Array, "v p q 2"]:
    """How much a window can say of either coordinate, 0 to 1: a blank wall seems to stand still in any image."""
    grey = frames.mean(-1)
    padded = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    step = frames.shape[1] // grid[0]
    energy = [_box(jnp.square(slope / 2), _WINDOW)[:, step // 2 :: step, step // 2 :: step] for slope in (across, down)]
    return jnp.stack([e / (e + _NOISE**2) for e in energy], axis=-1)


def _box(images: Float[Array, "v h w"], size: int) -> Float[Array, "v h w"]:
    """Means over squares; beyond the border its values repeat."""
    padded = jnp.pad(images, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)), mode="edge")
    return jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, size, size), (1, 1, 1), "VALID") / size**2

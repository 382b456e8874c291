"""A window of frames mapped together: match, adjust, and match again from where the adjustment says to look."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.errors import InputError
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, Solution, adjust
from spatia_jax.mapper.matching import Matcher, PatchMatcher
from spatia_jax.mapper.problem import Matches, Priors, Variables, max_degree
from spatia_jax.mapper.reprojection import pixel_grid, warp


@dataclass(frozen=True)
class WindowConfig:
    """How a window is mapped.

    Attributes:
        matcher: the front end.
        adjustment: each round's.
        rounds: of matching and adjusting; from the second on the search starts at the reprojection.
        kernel_widths: of the first round.
        match_sigma_px: standard deviation of a match of weight 1, in pixels of the grid; it gives matches their
            strength against the priors.
    """

    matcher: Matcher = PatchMatcher()
    adjustment: AdjustmentConfig = AdjustmentConfig(iterations=20, damping=1e-2, robust_px=0.15)
    rounds: int = 2
    kernel_widths: tuple[float, ...] = (10.0, 3.0, 1.0)
    match_sigma_px: float = 0.05

    def __post_init__(self):
        if self.rounds < 1 or self.match_sigma_px <= 0:
            raise InputError(f"rounds {self.rounds} and match_sigma_px {self.match_sigma_px} have to be above 0")


def window_pairs(num_frames: int, radius: int) -> Int[np.ndarray, "p 2"]:
    """All pairs (i, j), i < j, of frames up to `radius` apart."""
    pairs = [(i, j) for i in range(num_frames) for j in range(i + 1, min(i + radius, num_frames - 1) + 1)]
    return np.array(pairs, np.int32).reshape(-1, 2)


def reproject(variables: Variables, pairs: Int[Array, "p 2"]) -> Float[Array, "p 2 h w 2"]:
    """Where the pixels of each frame of a pair should be seen in the other; those behind it stay where they are."""
    _, height, width = variables.inverse_depth.shape
    pixels = pixel_grid(height, width)

    def one(i, j):
        poses = variables.poses.wxyz_xyz
        relative = (jaxlie.SE3(poses[j]) @ jaxlie.SE3(poses[i]).inverse()).as_matrix()[:3]
        seen, ratio, _, _ = warp(
            relative, variables.inverse_depth[i].ravel(), variables.lens[i], variables.lens[j], pixels
        )
        return jnp.where(ratio > 0, seen, pixels).T.reshape(height, width, 2)

    both = jnp.stack([pairs, pairs[:, ::-1]], axis=1).reshape(-1, 2)
    return jax.vmap(one)(both[:, 0], both[:, 1]).reshape(len(pairs), 2, height, width, 2)


def as_edges(
    pairs: Int[Array, "p 2"],
    pixels: Float[Array, "p 2 h w 2"],
    weights: Float[Array, "p 2 h w 2"],
    degree: int,
    sigma_px: float,
) -> Matches:
    """Matches of pairs as directed edges."""
    flat = (-1, *pixels.shape[2:])
    return Matches(
        pairs.reshape(-1), pairs[:, ::-1].reshape(-1), pixels.reshape(flat), weights.reshape(flat) / sigma_px**2, degree
    )


def among_static(
    weights: Float[Array, "p 2 h w 2"],
    pixels: Float[Array, "p 2 h w 2"],
    pairs: Int[Array, "p 2"],
    static: Bool[Array, "v h w"],
) -> Float[Array, "p 2 h w 2"]:
    """Weights of matches, 0 where one of their ends is known to move."""
    height, width = static.shape[1:]
    ends, others = pairs, pairs[:, ::-1]  # [p, 2]: of both directions
    landed = jnp.round(pixels).astype(jnp.int32)
    column, row = jnp.clip(landed[..., 0], 0, width - 1), jnp.clip(landed[..., 1], 0, height - 1)
    there = static[others[:, :, None, None], row, column]
    return jnp.where((static[ends] & there)[..., None], weights, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window:
    """A mapped window: what was matched last and the adjustment to it."""

    matches: Matches
    solution: Solution


def map_window(
    config: WindowConfig,
    images: Float[Array, "v h w 3"],
    pairs: Int[np.ndarray, "p 2"],
    start: Variables,
    priors: Priors,
    static: Bool[Array, "v h w"] | None = None,
) -> Window:
    """Poses and depth of frames from `start`.

    Args:
        images: colours in [0, 1], a whole multiple of the grid of `start.inverse_depth` in size.
        pairs: frames that are matched, in both directions.
        static: pixels of the grid that are matched at all; by default all of them.
    """
    if static is None:
        static = jnp.ones(start.inverse_depth.shape, bool)
    grid = start.inverse_depth.shape[1:]
    degree = max_degree(np.asarray(pairs).ravel(), len(start.lens))
    wanted = jnp.asarray(pairs)
    first = replace(config, adjustment=replace(config.adjustment, kernel_widths=config.kernel_widths))
    window = _round(first, degree, grid, images, wanted, None, start, priors, static)
    for _ in range(config.rounds - 1):
        found = window.solution.variables
        expected = reproject(found, wanted)
        window = _round(config, degree, grid, images, wanted, expected, found, priors, static)
    return window


@partial(jax.jit, static_argnums=(0, 1, 2))
def _round(
    config: WindowConfig, degree: int, grid: tuple[int, int], images, pairs, expected, start, priors, static
) -> Window:
    pixels, weights = config.matcher(images, pairs, grid, expected)
    weights = among_static(weights, pixels, pairs, static)
    matches = as_edges(pairs, pixels, weights, degree, config.match_sigma_px)
    return Window(matches, adjust(matches, priors, start, config.adjustment))

"""Dense bundle adjustment: poses, depth of every pixel, and if asked the lens, that agree best with matches and priors.

    minimise  sum_edges sum_pixels w rho(match - p(T_i, T_j, d, lens))       what was seen where
            + sum_pixels alpha (scale_k prior + shift_k - d)^2               depth, as known before
            + sum_frames |log(T_k T_prior^-1)|^2                             poses, as commanded or measured
            + the fits' pull to (1, 0) and the lens's to its calibration

by Levenberg-Marquardt with a fixed number of iterations: a step that does not lower the cost is not taken, and damps
the next one more. Everything has a static shape, is float32, and is differentiable through the unrolled iterations.

Gauge: poses with `Priors.fixed` do not move at all. One fixed pose leaves the scale free unless poses or depths have a
prior; damping then keeps it where the start had it. With none fixed and no pose prior, damping holds the whole gauge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import jaxlie
from jax import lax
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.mapper import normal_equations as system
from spatia_jax.mapper.normal_equations import PackedMatches, Step, Unknowns
from spatia_jax.mapper.problem import Matches, Priors, Variables
from spatia_jax.mapper.reprojection import pixel_grid, warp

_MAX_FACTOR = 4.0  # by which one iteration may change a depth
_LOST_SHARE = 1 / 8  # of the image's width: the residual that a point behind the target camera counts as
_MIN_DAMPING, _MAX_DAMPING = 1e-8, 1e4


@dataclass(frozen=True)
class AdjustmentConfig:
    """How to adjust.

    Attributes:
        iterations: Levenberg-Marquardt steps, taken or not.
        damping: the first one, relative to the diagonal of the system.
        damping_down, damping_up: its factors after a step that lowered the cost, and after one that did not.
        robust_px: residual at which Cauchy's kernel halves a match's weight; None: least squares. It may be traced.
        refine_lens: solve for one shared correction of focal lengths (relative) and centre.
        fit_prior: solve for scale and shift of each frame's depth prior.
    """

    iterations: int = 8
    damping: float = 1e-4
    damping_down: float = 0.1
    damping_up: float = 10.0
    robust_px: float | Array | None = None
    refine_lens: bool = False
    fit_prior: bool = False

    def __post_init__(self):
        if isinstance(self.robust_px, float | int) and self.robust_px <= 0:
            raise InputError(f"robust_px is {self.robust_px}; it is a residual in pixels, above 0, or None")
        if not 0 < self.damping_down <= 1 <= self.damping_up:
            raise InputError(
                f"damping_down {self.damping_down} and damping_up {self.damping_up}; expected 0 < down <= 1 <= up"
            )

    @property
    def unknowns(self) -> Unknowns:
        return Unknowns(self.refine_lens, self.fit_prior)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solution:
    """Adjusted variables.

    Attributes:
        variables: as good as found.
        costs: [iterations + 1], never rising.
        depth_information: [v, h, w] of each inverse depth with the poses known: curvature of the cost (matches and
            prior); 0 where nothing speaks of a pixel.
    """

    variables: Variables
    costs: Array
    depth_information: Array


def adjust(matches: Matches, priors: Priors, start: Variables, config: AdjustmentConfig) -> Solution:
    """Solves the problem of the module docstring from `start`.

    All inputs may be traced; only shapes, `matches.degree` and `config` are static. Matches that are not finite count
    as none. A problem that says nothing (one frame, no overlap, everything masked or behind the cameras) returns its
    start.
    """
    packed = _finite(system.pack(matches, len(start.lens)))
    unknowns = config.unknowns

    def iterate(carry, _):
        variables, cost, damping = carry
        systems = system.build(variables, priors, packed, unknowns, config.robust_px)
        reduced = system.reduce(systems, damping, priors.fixed, unknowns)
        candidate = retract(variables, system.solve(systems, reduced, unknowns))
        new_cost = total_cost(candidate, priors, packed, config)
        better = new_cost <= cost  # False for NaN
        variables = jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, variables)
        damping = damping * jnp.where(better, config.damping_down, config.damping_up)
        cost = jnp.where(better, new_cost, cost)
        return (variables, cost, jnp.clip(damping, _MIN_DAMPING, _MAX_DAMPING)), cost

    cost = total_cost(start, priors, packed, config)
    first = (start, cost, jnp.float32(config.damping))
    (variables, _, _), costs = lax.scan(iterate, first, None, length=config.iterations)
    information = system.build(variables, priors, packed, Unknowns(), config.robust_px).depth
    return Solution(variables, jnp.concatenate([cost[None], costs]), information.reshape(variables.inverse_depth.shape))


def retract(variables: Variables, step: Step) -> Variables:
    """The variables after a step: T <- exp(xi) T, depths by at most a factor, focal lengths by their logarithm."""
    depth = variables.inverse_depth
    moved = depth + step.inverse_depth.reshape(depth.shape)
    lens = variables.lens
    return Variables(
        poses=(jaxlie.SE3.exp(step.poses) @ variables.poses).normalize(),
        inverse_depth=jnp.clip(moved, depth / _MAX_FACTOR, depth * _MAX_FACTOR),
        lens=jnp.concatenate([lens[:, :2] * jnp.exp(step.lens[:2]), lens[:, 2:] + step.lens[2:]], axis=1),
        prior_fit=variables.prior_fit + step.prior_fit,
    )


def total_cost(
    variables: Variables, priors: Priors, packed: PackedMatches, config: AdjustmentConfig
) -> Float[Array, ""]:
    """What is minimised. A matched point behind its target camera costs as much as one that is far off."""
    num_frames, _, _, n = packed.pixels.shape
    height, width = variables.inverse_depth.shape[1:]
    pixels = pixel_grid(height, width)

    def edge(relative, inverse_depth, lens_i, lens_j, match):
        predicted, ratio, _, _ = warp(relative, inverse_depth, lens_i, lens_j, pixels)
        return jnp.where(ratio > 0, match - predicted, _LOST_SHARE * width)

    depth = variables.inverse_depth.reshape(num_frames, n)
    residual = jax.vmap(jax.vmap(edge, (0, None, None, 0, 0)))(
        system.relative_poses(variables.poses, packed.target).as_matrix()[..., :3, :],
        depth,
        variables.lens,
        variables.lens[jnp.minimum(packed.target, num_frames - 1)],
        packed.pixels,
    )
    cost = (packed.weights * system.robust_square(residual, config.robust_px)).sum()
    fit = variables.prior_fit
    expected = fit[:, :1] * priors.inverse_depth.reshape(num_frames, n) + fit[:, 1:]
    cost += (priors.depth_information.reshape(num_frames, n) * jnp.square(expected - depth)).sum()
    cost += (priors.pose_information * jnp.square(system.pose_residual(variables.poses, priors.poses))).sum()
    if config.fit_prior:
        cost += (priors.fit_information * jnp.square(fit - jnp.array([1.0, 0.0]))).sum()
    if config.refine_lens:
        away = system.lens_residual(variables.lens[0], priors.lens[0])
        cost += (priors.lens_information * jnp.square(away)).sum()
    return cost


def depth_variance(
    matches: Matches, priors: Priors, variables: Variables, config: AdjustmentConfig
) -> Float[Array, "v h w"]:
    """Variance of every inverse depth, the uncertainty of the poses included; infinite where nothing is known.

    C^-1 + C^-1 E^T S^-1 E C^-1, in which S^-1 is the covariance of poses (and lens, and fits) under the gauge. It is in
    the units of the weights: true where these are 1 / px^2 of real noise.
    """
    unknowns = config.unknowns
    packed = _finite(system.pack(matches, len(variables.lens)))
    systems = system.build(variables, priors, packed, unknowns, config.robust_px)
    reduced = system.reduce(systems, 0.0, priors.fixed, unknowns)
    size = len(reduced.scale)
    covariance = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(reduced.matrix), True), jnp.diag(reduced.scale))
    covariance = jnp.pad(covariance * reduced.scale[:, None], ((1, 0), (1, 0)))
    places = jnp.where(systems.index <= size, systems.index, 0)  # row and column 0 are zero
    local = covariance[places[:, :, None], places[:, None, :]]
    local = jnp.einsum("kla,kab,kmb->klm", systems.expand, local, systems.expand, precision=lax.Precision.HIGHEST)
    seen = jnp.einsum("klm,kmn->kln", local, systems.coupling, precision=lax.Precision.HIGHEST)
    from_poses = jnp.maximum((seen * systems.coupling).sum(1), 0.0)
    variance = reduced.per_depth + jnp.square(reduced.per_depth) * from_poses
    return jnp.where(reduced.per_depth > 0, variance, jnp.inf).reshape(variables.inverse_depth.shape)


def _finite(packed: PackedMatches) -> PackedMatches:
    """Matches without what is not finite: weight 0, somewhere on the image."""
    usable = (jnp.isfinite(packed.pixels) & jnp.isfinite(packed.weights)).all(axis=2, keepdims=True)
    return replace(
        packed,
        pixels=jnp.where(usable, packed.pixels, 0.0),
        weights=jnp.where(usable, packed.weights, 0.0),
    )

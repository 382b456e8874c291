"""The linearised adjustment problem, reduced to its few variables by the Schur complement over depth.

Each frame k first gathers a small *local* system over what its pixels can see: the twists zeta_s of the d edges that
leave it and, if they are solved for, the shared lens (4) and the fit of its depth prior (2). Its depths, which nothing
else sees, are eliminated there:

    [H  E  ] [theta]   [v]          (H - E C^-1 E^T) theta = v - E C^-1 b
    [E^T C ] [delta] = [b]    =>    delta = C^-1 (b - E^T theta)         C is diagonal: one number a pixel

The right-hand side rides along as row 0 of H and E, so one product gives both sides. Memory grows with the edges, not
with frames squared. Then zeta_s = xi_target - Ad(T) xi_k turns the local systems into blocks of the global one.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jaxlie
from jax import lax
from jaxtyping import Array, Float, Int

from spatia_jax.mapper.problem import Matches, Priors, Variables, slots_by_source
from spatia_jax.mapper.reprojection import linearize, pixel_grid

_HIGHEST = lax.Precision.HIGHEST  # H and E C^-1 E^T nearly cancel: bfloat16 products would leave nothing
FLOOR = 1e-6  # relative damping that stays: float32 cannot tell a smaller eigenvalue from none
# A depth whose change by its whole size moves its matches by this much hardly moves: without motion between frames,
# rounding alone would say where it is.
HOLD_PX = 1e-3
DENSE_UP_TO = 16  # frames up to which local systems are added by products with one-hot matrices, not by scatter


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedMatches:
    """Matches in slots by source frame: v frames, d slots, n pixels.

    Attributes:
        target: [v, d] int32; an empty slot has the number v.
        pixels, weights: [v, d, 2, n]; weights are 0 in empty slots.
    """

    target: Array
    pixels: Array
    weights: Array


@dataclass(frozen=True)
class Unknowns:
    """What is solved for beside poses and depth: the shared lens, and scale and shift of each frame's depth prior."""

    lens: bool = False
    prior_fit: bool = False

    def num_global(self, num_frames: int) -> int:
        return 6 * num_frames + 4 * self.lens + 2 * num_frames * self.prior_fit


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LocalSystems:
    """The v local systems over m variables: [right-hand side | xi_k | xi of the d targets | lens | prior fit].

    Attributes:
        information: [v, m, m], H with v as row and column 0; its corner is the weighted squared residual.
        coupling: [v, l, n], E with b as row 0, over l = m - 6 variables: twists of the edges instead of poses.
        expand: [v, l, m], from poses to twists.
        depth: [v, n], C.
        hold: [v, n], what is added to C wherever it is inverted (`HOLD_PX`).
        index: [v, m] int32, where each variable stands in the global system; beyond its end if nowhere.
    """

    information: Array
    coupling: Array
    expand: Array
    depth: Array
    hold: Array
    index: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """A change of the variables: poses [v, 6] (xi), lens [4] (log focal lengths, centre), prior_fit [v, 2], inverse
    depth [v, n]."""

    poses: Array
    lens: Array
    prior_fit: Array
    inverse_depth: Array


def add_up(array: Array, axis: int) -> Array:
    """The sum over a short axis, written out: XLA's CPU reductions over an axis of 2 or 4 take ten times as long."""
    return sum(jnp.unstack(array, axis=axis)[1:], start=jnp.unstack(array, axis=axis)[0])


def pack(matches: Matches, num_frames: int) -> PackedMatches:
    """Edges into the slots of their source frames."""
    if len(matches.source) == 0:  # one empty edge: gathers want something to look at
        matches = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 1)] + [(0, 0)] * (leaf.ndim - 1)), matches)
    slots = slots_by_source(matches.source, matches.target, num_frames, matches.degree)

    def planes(edges: Array) -> Array:  # [e, h, w, 2] -> [v, d, 2, n]
        flat = jnp.swapaxes(edges.reshape(len(edges), -1, 2), 1, 2)
        return flat.at[slots].get(mode="fill", fill_value=0.0)

    target = matches.target.at[slots].get(mode="fill", fill_value=num_frames)
    return PackedMatches(target, planes(matches.pixels), planes(matches.weights))


def relative_poses(poses: jaxlie.SE3, target: Int[Array, "v d"]) -> jaxlie.SE3:
    """T_target T_k^-1 of every slot; something finite in empty ones."""
    there = jaxlie.SE3(poses.wxyz_xyz[jnp.minimum(target, len(target) - 1)])
    return there @ jaxlie.SE3(poses.wxyz_xyz[:, None]).inverse()


def robust_factor(residual: Array, robust_px: float | Array | None) -> Array:
    """Weight factor of Cauchy's kernel, whose cost is c^2 log(1 + r^2 / c^2): half at c pixels."""
    return jnp.ones_like(residual) if robust_px is None else 1 / (1 + jnp.square(residual / robust_px))


def robust_square(residual: Array, robust_px: float | Array | None) -> Array:
    """The cost that `robust_factor` descends; r^2 without a kernel."""
    square = jnp.square(residual)
    return square if robust_px is None else robust_px**2 * jnp.log1p(square / robust_px**2)


def build(
    variables: Variables, priors: Priors, packed: PackedMatches, unknowns: Unknowns, robust_px: float | Array | None
) -> LocalSystems:
    """Linearises all edges and priors and gathers them by frame."""
    degree = packed.target.shape[1]
    relative = relative_poses(variables.poses, packed.target)
    rows, weighted, by_depth, curvature, total_weight = _edge_rows(variables, relative, packed, unknowns, robust_px)
    gram = jnp.einsum("kdcan,kdcbn->kdcab", weighted, rows, precision=_HIGHEST).sum(2)
    cross = add_up(weighted * by_depth[:, :, :, None], axis=2)
    information, coupling = lax.optimization_barrier(_stack_slots(gram, cross))
    information, coupling, alpha = _add_depth_prior(information, coupling, variables, priors, unknowns)
    expand = _twists_from_poses(relative.adjoint(), information.shape[1])
    information = jnp.einsum("kla,klm,kmb->kab", expand, information, expand, precision=_HIGHEST)
    information = information.at[:, :7, :7].add(_pose_prior(variables, priors))
    if unknowns.lens:  # once: with the first frame
        places = jnp.array([0, *range(7 + 6 * degree, 11 + 6 * degree)])
        information = information.at[0, places[:, None], places].add(_lens_prior(variables, priors))
    hold = total_weight * jnp.square(HOLD_PX / variables.inverse_depth.reshape(alpha.shape))
    return LocalSystems(information, coupling, expand, curvature + alpha, hold, _places(packed.target, unknowns))


def _edge_rows(
    variables: Variables,
    relative: jaxlie.SE3,
    packed: PackedMatches,
    unknowns: Unknowns,
    robust_px: float | Array | None,
) -> tuple[Float[Array, "v d 2 r n"], Float[Array, "v d 2 r n"], Float[Array, "v d 2 n"], Float[Array, "v n"], Array]:
    """All edges linearised: rows [residual | twist (6) | lens (4, if solved for)], the same times the weights, the
    Jacobian of depth, the curvature of the cost in depth, and the sum of a pixel's weights [v, n]."""
    num_frames, _, _, n = packed.pixels.shape
    pixels = pixel_grid(*variables.inverse_depth.shape[1:])

    def edge(relative, inverse_depth, lens_i, lens_j, match):
        terms = linearize(relative, inverse_depth, lens_i, lens_j, match, pixels)
        lens = [terms.lens] if unknowns.lens else []
        return jnp.concatenate([terms.residual[:, None], terms.pose, *lens], axis=1), terms.depth, terms.valid

    rows, by_depth, valid = jax.vmap(jax.vmap(edge, (0, None, None, 0, 0)))(
        relative.as_matrix()[..., :3, :],
        variables.inverse_depth.reshape(num_frames, n),
        variables.lens,
        variables.lens[jnp.minimum(packed.target, num_frames - 1)],
        packed.pixels,
    )
    weights = jnp.where(valid[:, :, None], packed.weights, 0.0) * robust_factor(rows[:, :, :, 0], robust_px)
    # Without the barrier XLA computes every row anew for every product that it enters: five times as slow.
    curvature = add_up(add_up(weights * by_depth**2, axis=2), axis=1)
    total = add_up(add_up(weights, axis=2), axis=1)
    return lax.optimization_barrier((rows, rows * weights[:, :, :, None], by_depth, curvature, total))


def _stack_slots(gram: Float[Array, "v d r r"], cross: Float[Array, "v d r n"]) -> tuple[Array, Array]:
    """[rhs | twists of all slots side by side | lens]: information [v, l, l] and coupling [v, l, n]."""
    num_frames, degree, size, n = cross.shape
    twist, rest = slice(1, 7), jnp.array([0, *range(7, size)])
    own = jnp.eye(degree)[None, :, None, :, None] * gram[:, :, twist, None, twist]
    own = own.reshape(num_frames, 6 * degree, 6 * degree)
    beside = gram[:, :, twist, rest].reshape(num_frames, 6 * degree, len(rest))
    shared = gram[:, :, rest[:, None], rest].sum(1)
    information = jnp.concatenate(
        [
            jnp.concatenate([shared, jnp.swapaxes(beside, 1, 2)], axis=2),
            jnp.concatenate([beside, own], axis=2),
        ],
        axis=1,
    )
    coupling = jnp.concatenate(
        [add_up(cross[:, :, rest], axis=1), cross[:, :, twist].reshape(num_frames, 6 * degree, n)], axis=1
    )
    order = jnp.array([0, *range(len(rest), len(rest) + 6 * degree), *range(1, len(rest))])
    return information[:, order[:, None], order], coupling[:, order]


def _add_depth_prior(information, coupling, variables: Variables, priors: Priors, unknowns: Unknowns):
    """A match of depth itself: alpha (scale * prior + shift - d)^2. Returns both systems, grown, and alpha [v, n]."""
    num_frames = len(information)
    alpha, prior, depth = (
        array.reshape(num_frames, -1)
        for array in (priors.depth_information, priors.inverse_depth, variables.inverse_depth)
    )
    scale, shift = variables.prior_fit[:, :1], variables.prior_fit[:, 1:]
    rows = jnp.stack([scale * prior + shift - depth, -prior, -jnp.ones_like(prior)], axis=1)
    grown = 2 if unknowns.prior_fit else 0
    rows, places = rows[:, : 1 + grown], jnp.array([0, -2, -1])[: 1 + grown]
    weighted = rows * alpha[:, None]
    gram = jnp.einsum("kan,kbn->kab", weighted, rows, precision=_HIGHEST)
    if grown:  # the fit itself is drawn to scale 1 and shift 0
        away = variables.prior_fit - jnp.array([1.0, 0.0])
        own = jax.vmap(_gram)(-away, jnp.broadcast_to(jnp.eye(2), (num_frames, 2, 2)), priors.fit_information)
        gram = gram + own
    information = jnp.pad(information, ((0, 0), (0, grown), (0, grown)))
    information = information.at[:, places[:, None], places].add(gram)
    coupling = jnp.pad(coupling, ((0, 0), (0, grown), (0, 0))).at[:, places].add(weighted)
    return information, coupling, alpha


def _gram(residual: Float[Array, " k"], jacobian: Float[Array, "k a"], information: Float[Array, " k"]) -> Array:
    """(r | J)^T diag(information) (r | J), r = observed - predicted: the quadratic form of a small prior."""
    rows = jnp.concatenate([residual[:, None], jacobian], axis=1)
    return jnp.einsum("ka,k,kb->ab", rows, information, rows, precision=_HIGHEST)


def pose_residual(poses: jaxlie.SE3, prior: jaxlie.SE3) -> Float[Array, "v 6"]:
    """log(T T_prior^-1): how far poses are from their priors, in the axes of their cameras."""
    return (poses @ prior.inverse()).log()


def _pose_prior(variables: Variables, priors: Priors) -> Float[Array, "v 7 7"]:
    def one(pose, prior, information):
        def residual(xi):
            return pose_residual(jaxlie.SE3.exp(xi) @ jaxlie.SE3(pose), jaxlie.SE3(prior))

        zero = jnp.zeros(6)
        return _gram(-residual(zero), jax.jacfwd(residual)(zero), information)

    return jax.vmap(one)(variables.poses.wxyz_xyz, priors.poses.wxyz_xyz, priors.pose_information)


def lens_residual(lens: Float[Array, "*v 4"], prior: Float[Array, "*v 4"]) -> Float[Array, "*v 4"]:
    """Log focal lengths and centres against calibration."""
    return jnp.concatenate([jnp.log(lens[..., :2] / prior[..., :2]), lens[..., 2:] - prior[..., 2:]], axis=-1)


def _lens_prior(variables: Variables, priors: Priors) -> Float[Array, "5 5"]:
    return _gram(-lens_residual(variables.lens[0], priors.lens[0]), jnp.eye(4), priors.lens_information)


def _twists_from_poses(adjoint: Float[Array, "v d 6 6"], size: int) -> Float[Array, "v l m"]:
    """zeta_s = xi_s - Ad xi_k, as a matrix from [rhs | xi_k | xi_s ... | rest] to [rhs | zeta_s ... | rest]."""
    num_frames, degree = adjoint.shape[:2]
    own = jnp.pad(-adjoint.reshape(num_frames, 6 * degree, 6), ((0, 0), (1, size - 1 - 6 * degree), (0, 0)))
    same = jnp.broadcast_to(jnp.eye(size), (num_frames, size, size))
    return jnp.concatenate([same[..., :1], own, same[..., 1:]], axis=2)


def _places(target: Int[Array, "v d"], unknowns: Unknowns) -> Int[Array, "v m"]:
    """Where local variables stand globally: [rhs | xi of all frames | lens | prior fits of all frames]."""
    num_frames = len(target)
    nowhere = 1 + unknowns.num_global(num_frames)
    frames = jnp.concatenate([jnp.arange(num_frames)[:, None], target], axis=1)[..., None]
    poses = jnp.where(frames < num_frames, 1 + 6 * frames + jnp.arange(6), nowhere).reshape(num_frames, -1)
    columns = [jnp.zeros((num_frames, 1), jnp.int32), poses]
    at = 1 + 6 * num_frames
    if unknowns.lens:
        columns.append(jnp.broadcast_to(at + jnp.arange(4), (num_frames, 4)))
        at += 4
    if unknowns.prior_fit:
        columns.append(at + 2 * jnp.arange(num_frames)[:, None] + jnp.arange(2))
    return jnp.concatenate(columns, axis=1).astype(jnp.int32)


def sum_locals(local: Float[Array, "v m m"], index: Int[Array, "v m"], size: int) -> Float[Array, "{size} {size}"]:
    """Adds local matrices at their places. Two ways, the same sums: chosen by size."""
    if len(local) <= DENSE_UP_TO:
        places = jax.nn.one_hot(index, size)
        half = jnp.einsum("kij,kjb->kib", local, places, precision=_HIGHEST)
        return jnp.einsum("kia,kib->ab", places, half, precision=_HIGHEST)
    return jnp.zeros((size, size)).at[index[:, :, None], index[:, None, :]].add(local, mode="drop")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reduced:
    """The global system without the depths, scaled to a unit diagonal.

    Attributes:
        matrix: [g, g], damped; not free variables have a row of the identity.
        right: [g].
        scale: [g], what a solution is multiplied by.
        per_depth: [v, n], C^-1 (0 where nothing is known of a pixel).
    """

    matrix: Array
    right: Array
    scale: Array
    per_depth: Array


def reduce(systems: LocalSystems, damping: Float[Array, ""] | float, fixed: Array, unknowns: Unknowns) -> Reduced:
    """The Schur complement. Marquardt's damping adds `damping` times its own diagonal to the full system.

    Args:
        fixed: [v] bool, poses that do not move.
    """
    curvature = systems.depth * (1 + damping) + systems.hold
    per_depth = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    scaled, plain = lax.optimization_barrier((systems.coupling * per_depth[:, None], systems.coupling))
    eliminated = jnp.einsum("kan,kbn->kab", scaled, plain, precision=_HIGHEST)
    expand = systems.expand
    eliminated = jnp.einsum("kla,klm,kmb->kab", expand, eliminated, expand, precision=_HIGHEST)
    size = 1 + unknowns.num_global(len(fixed))
    total = sum_locals(systems.information - eliminated, systems.index, size)
    diagonal = jnp.diagonal(systems.information, axis1=1, axis2=2)
    diagonal = jnp.zeros(size).at[systems.index].add(diagonal, mode="drop")[1:]
    free = jnp.concatenate([jnp.repeat(~fixed, 6), jnp.ones(size - 1 - 6 * len(fixed), bool)]) & (diagonal > 0)
    scale = jnp.where(free, lax.rsqrt(jnp.where(free, diagonal, 1.0)), 0.0)
    matrix = scale[:, None] * total[1:, 1:] * scale + jnp.diag(jnp.where(free, damping + FLOOR, 1.0))
    return Reduced(matrix, scale * total[0, 1:], scale, per_depth)


def solve(systems: LocalSystems, reduced: Reduced, unknowns: Unknowns) -> Step:
    """The step of all variables; not finite where the system could not be solved."""
    num_frames = len(systems.depth)
    factor = jnp.linalg.cholesky(reduced.matrix)
    flat = reduced.scale * jax.scipy.linalg.cho_solve((factor, True), reduced.right)
    local = jnp.concatenate([-jnp.ones(1), flat]).at[systems.index].get(mode="fill", fill_value=0.0)
    twists = jnp.einsum("klm,km->kl", systems.expand, local, precision=_HIGHEST)
    depth = -reduced.per_depth * jnp.einsum("kln,kl->kn", systems.coupling, twists, precision=_HIGHEST)
    poses, rest = flat[: 6 * num_frames].reshape(num_frames, 6), flat[6 * num_frames :]
    lens = rest[:4] if unknowns.lens else jnp.zeros(4)
    fit = rest[4 * unknowns.lens :].reshape(num_frames, 2) if unknowns.prior_fit else jnp.zeros((num_frames, 2))
    return Step(poses, lens, fit, depth)

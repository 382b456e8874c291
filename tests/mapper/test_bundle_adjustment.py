"""Bundle adjustment: derivatives, exact recovery, invariances, and what it does when there is nothing to adjust."""

from __future__ import annotations

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from mapper.adjustment_scene import exact_matches, ground_truth, perturbed, pose_errors

from spatia_jax.errors import InputError
from spatia_jax.mapper import normal_equations
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust, depth_variance, retract, total_cost
from spatia_jax.mapper.normal_equations import Step, Unknowns
from spatia_jax.mapper.problem import Matches, Priors, Variables, max_degree
from spatia_jax.mapper.reprojection import linearize, pixel_grid, warp

solve = jax.jit(adjust, static_argnums=3)
variance = jax.jit(depth_variance, static_argnums=3)


# One edge ----------------------------------------------------------------------------------------


def _edge(seed: int = 0, n: int = 12):
    """A random pose between two cameras with different lenses, and pixels with depths before both."""
    generator = np.random.default_rng(seed)
    xi = jnp.asarray(generator.normal(size=6) * [0.3, 0.3, 0.3, 0.1, 0.1, 0.1], jnp.float32)
    relative = jaxlie.SE3.exp(xi).as_matrix()[:3]
    lenses = jnp.asarray([[60.0, 62.0, 31.0, 23.0], [50.0, 55.0, 30.0, 25.0]], jnp.float32)
    pixels = jnp.asarray(generator.uniform([[0], [0]], [[63], [47]], (2, n)), jnp.float32)
    inverse_depth = jnp.asarray(generator.uniform(0.2, 1.0, n), jnp.float32)
    return relative, inverse_depth, lenses, pixels


def _predict(xi, log_focal_and_center, inverse_depth, relative, lenses, pixels):
    """Where the pixels land after a twist and a shared change of the lenses."""
    moved = (jaxlie.SE3.exp(xi) @ jaxlie.SE3.from_matrix(jnp.concatenate([relative, jnp.eye(4)[3:]]))).as_matrix()[:3]
    change = log_focal_and_center
    lenses = jnp.concatenate([lenses[:, :2] * jnp.exp(change[:2]), lenses[:, 2:] + change[2:]], axis=1)
    return warp(moved, inverse_depth, lenses[0], lenses[1], pixels)[0]


@pytest.mark.parametrize("seed", range(3))
def test_analytic_jacobians_are_those_of_autodiff(seed):
    relative, inverse_depth, lenses, pixels = _edge(seed)
    terms = linearize(relative, inverse_depth, *lenses, jnp.zeros_like(pixels), pixels)
    zeros = jnp.zeros(6), jnp.zeros(4)
    pose, lens, depth = jax.jacfwd(_predict, (0, 1, 2))(*zeros, inverse_depth, relative, lenses, pixels)
    np.testing.assert_allclose(terms.pose, jnp.moveaxis(pose, 2, 1), rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(terms.lens, jnp.moveaxis(lens, 2, 1), rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(terms.depth, jnp.einsum("cnn->cn", depth), rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(terms.residual, -_predict(*zeros, inverse_depth, relative, lenses, pixels), atol=1e-4)


@pytest.mark.slow
def test_analytic_jacobians_are_those_of_finite_differences():
    """In float64 of numpy, so that the differences mean something."""
    relative, inverse_depth, lenses, pixels = _edge(5)
    terms = linearize(relative, inverse_depth, *lenses, jnp.zeros_like(pixels), pixels)
    r, d, k, p = (np.asarray(x, np.float64) for x in (relative, inverse_depth, lenses, pixels))

    def predict(xi, d):
        # exp(xi) to second order is exact to 1e-9 at this step
        w = np.array([[0, -xi[5], xi[4]], [xi[5], 0, -xi[3]], [-xi[4], xi[3], 0]])
        turn = np.eye(3) + w + w @ w / 2
        rotation, t = turn @ r[:, :3], turn @ r[:, 3] + (np.eye(3) + w / 2) @ xi[:3]
        ray = np.stack([(p[0] - k[0, 2]) / k[0, 0], (p[1] - k[0, 3]) / k[0, 1], np.ones(p.shape[1])])
        x = rotation @ ray + t[:, None] * d
        return k[1, :2, None] * x[:2] / x[2] + k[1, 2:, None]

    step = 1e-4
    for axis in range(6):
        xi = np.eye(6)[axis] * step
        numeric = (predict(xi, d) - predict(-xi, d)) / (2 * step)
        np.testing.assert_allclose(terms.pose[:, axis], numeric, rtol=1e-4, atol=1e-3)
    numeric = (predict(np.zeros(6), d + step) - predict(np.zeros(6), d - step)) / (2 * step)
    np.testing.assert_allclose(terms.depth, numeric, rtol=1e-4, atol=1e-3)


# The linear system -------------------------------------------------------------------------------


@pytest.mark.parametrize("unknowns", [Unknowns(), Unknowns(lens=True, prior_fit=True)])
@pytest.mark.slow
def test_a_step_solves_the_whole_linear_system(unknowns):
    """Against Gauss-Newton on the full dense Jacobian from autodiff, without any Schur complement."""
    truth = jax.tree.map(lambda leaf: leaf[:3], ground_truth())
    small = dataclasses.replace(truth, inverse_depth=truth.inverse_depth[:, ::6, ::8], lens=truth.lens / 7)
    start = perturbed(small, metres=0.02, degrees=0.5, depth=0.05, kept=0)
    matches = exact_matches(small, radius=2, noise_px=0.1)
    priors = Priors.none(start, 0).with_poses(small.cameras(), 0.1, 0.05).with_depth(1.02 / small.inverse_depth, 0.1)
    priors = dataclasses.replace(
        priors, lens_information=jnp.array([1e2, 1e2, 1.0, 1.0]), fit_information=jnp.full((3, 2), 10.0)
    )
    config = AdjustmentConfig(refine_lens=unknowns.lens, fit_prior=unknowns.prior_fit)
    packed = normal_equations.pack(matches, 3)
    damping = 1e-2
    systems = normal_equations.build(start, priors, packed, unknowns, None)
    reduced = normal_equations.reduce(systems, damping - normal_equations.FLOOR, priors.fixed, unknowns)
    step = normal_equations.solve(systems, reduced, unknowns)

    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, step))

    def residuals(x):
        """Square roots of the terms of the cost, with signs: what Gauss-Newton linearises."""
        moved = retract_linear_depth(start, unravel(x))
        return _signed_residuals(moved, priors, packed, config)

    jacobian = np.asarray(jax.jacfwd(residuals)(flat), np.float64)
    residual = np.asarray(residuals(flat), np.float64)
    asked = np.r_[np.ones(18), np.full(4, unknowns.lens), np.full(6, unknowns.prior_fit), np.ones(48)]
    used = (asked > 0) & (np.abs(jacobian).sum(0) > 0)
    hessian = jacobian.T @ jacobian
    damped = hessian + damping * np.diag(np.diag(hessian))
    expected = np.zeros(len(flat))
    expected[used] = -np.linalg.solve(damped[np.ix_(used, used)], (jacobian.T @ residual)[used])
    found, _ = jax.flatten_util.ravel_pytree(step)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3 * np.abs(expected).max())


def retract_linear_depth(variables: Variables, step: Step) -> Variables:
    """`retract` without the limit on depth, whose derivative is that of the identity only inside."""
    moved = retract(variables, step)
    depth = variables.inverse_depth + step.inverse_depth.reshape(variables.inverse_depth.shape)
    return dataclasses.replace(moved, inverse_depth=depth)


def _signed_residuals(variables, priors, packed, config):
    num_frames, _, _, n = packed.pixels.shape
    relative = normal_equations.relative_poses(variables.poses, packed.target)
    pixels = pixel_grid(*variables.inverse_depth.shape[1:])
    depth = variables.inverse_depth.reshape(num_frames, n)
    lens = variables.lens
    predicted = jax.vmap(jax.vmap(lambda *a: warp(*a, pixels)[0], (0, None, None, 0)))(
        relative.as_matrix()[..., :3, :], depth, lens, lens[jnp.minimum(packed.target, num_frames - 1)]
    )
    fit = variables.prior_fit
    parts = [
        jnp.sqrt(packed.weights) * (packed.pixels - predicted),
        jnp.sqrt(priors.depth_information.reshape(num_frames, n))
        * (fit[:, :1] * priors.inverse_depth.reshape(num_frames, n) + fit[:, 1:] - depth),
        jnp.sqrt(priors.pose_information) * normal_equations.pose_residual(variables.poses, priors.poses),
    ]
    if config.fit_prior:
        parts.append(jnp.sqrt(priors.fit_information) * (fit - jnp.array([1.0, 0.0])))
    if config.refine_lens:
        parts.append(jnp.sqrt(priors.lens_information) * normal_equations.lens_residual(lens[0], priors.lens[0]))
    return jnp.concatenate([part.ravel() for part in parts])


@pytest.mark.slow
def test_scatter_and_products_with_one_hot_matrices_add_the_same(monkeypatch):
    generator = np.random.default_rng(0)
    local = jnp.asarray(generator.normal(size=(5, 7, 7)), jnp.float32)
    index = jnp.asarray(np.stack([generator.permutation(14)[:7] for _ in range(5)]), jnp.int32)  # 12, 13: nowhere
    dense = normal_equations.sum_locals(local, index, 12)
    monkeypatch.setattr(normal_equations, "DENSE_UP_TO", 0)
    np.testing.assert_allclose(dense, normal_equations.sum_locals(local, index, 12), rtol=1e-5, atol=1e-6)


def test_edges_find_the_slots_of_their_source():
    source = jnp.array([2, 0, 2, 9, 1, 2])  # 9 is no frame
    pixels = jnp.arange(6.0)[:, None, None, None] + jnp.zeros((6, 1, 1, 2))
    matches = Matches(source, jnp.array([0, 1, 1, 0, 1, 2]), pixels, jnp.ones_like(pixels), 2)  # 1 -> 1, 2 -> 2: empty
    packed = normal_equations.pack(matches, 3)
    np.testing.assert_array_equal(packed.target, [[1, 3], [3, 3], [0, 1]])
    np.testing.assert_array_equal(packed.pixels[:, :, 0, 0], [[1, 0], [0, 0], [0, 2]])
    np.testing.assert_array_equal(packed.weights[:, :, 0, 0], [[1, 0], [0, 0], [1, 1]])


# What is found -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_exact_matches_give_the_truth(seed):
    """From 5 cm, 2 degrees and 10 % of depth, in 6 iterations: 1e-4 m and 1e-3 degrees asked, the floor is 5e-6."""
    truth = ground_truth()
    start = perturbed(truth, metres=0.05, degrees=2, depth=0.1, kept=2, seed=seed)
    found = solve(exact_matches(truth), Priors.none(start, 2), start, AdjustmentConfig(iterations=6))
    metres, degrees = pose_errors(found.variables, truth)
    assert pose_errors(start, truth)[0].max() > 0.03
    assert metres.max() < 2e-5
    assert degrees.max() < 1e-4
    seen = np.asarray(found.depth_information) > 1
    assert np.median(np.abs(found.variables.inverse_depth / truth.inverse_depth - 1)[seen]) < 1e-4
    assert (np.diff(found.costs) <= 0).all()


@pytest.mark.slow
def test_the_lens_is_found():
    truth = ground_truth()
    start = perturbed(truth, metres=0.02, degrees=1, depth=0.05, kept=1, seed=1)
    start = dataclasses.replace(start, lens=truth.lens * jnp.array([1.05, 1.05, 1, 1]) + jnp.array([0, 0, 0.5, -0.5]))
    priors = Priors.none(start, 1).with_poses(truth.cameras(), 0.01, 0.01)
    found = solve(exact_matches(truth), priors, start, AdjustmentConfig(iterations=12, refine_lens=True)).variables
    np.testing.assert_allclose(found.lens, truth.lens, rtol=5e-3)


@pytest.mark.slow
def test_scale_and_shift_of_the_depth_prior_are_found():
    truth = ground_truth()
    start = perturbed(truth, metres=0.02, degrees=1, depth=0.05, kept=2, seed=1)
    scale, shift = jnp.array([1.3, 0.8, 1.1, 0.9, 1.2, 1.0]), 0.02
    priors = Priors.none(start, 2).with_depth(scale[:, None, None] / (truth.inverse_depth - shift), 0.05)
    config = AdjustmentConfig(iterations=10, fit_prior=True)
    found = solve(exact_matches(truth), priors, start, config).variables
    np.testing.assert_allclose(found.prior_fit[:, 0], scale, rtol=5e-3)
    np.testing.assert_allclose(found.prior_fit[:, 1], shift, atol=3e-3)


@pytest.mark.slow
def test_the_robust_kernel_ignores_wrong_matches():
    truth = ground_truth()
    start = perturbed(truth, metres=0.02, degrees=0.5, depth=0.05, kept=2)
    matches = exact_matches(truth)
    generator = np.random.default_rng(0)
    wrong = (generator.random(matches.pixels.shape[:3]) < 0.15)[..., None] * generator.normal(size=2) * 8
    matches = dataclasses.replace(matches, pixels=matches.pixels + jnp.asarray(wrong, jnp.float32))
    priors = Priors.none(start, 2)
    plain = solve(matches, priors, start, AdjustmentConfig(iterations=15))
    robust = solve(matches, priors, start, AdjustmentConfig(iterations=15, robust_px=0.3))
    assert pose_errors(robust.variables, truth)[0].max() < 0.2 * pose_errors(plain.variables, truth)[0].max()
    assert pose_errors(robust.variables, truth)[0].max() < 1e-2


@pytest.mark.slow
def test_variance_is_the_diagonal_of_the_inverse_of_the_whole_system():
    truth = jax.tree.map(lambda leaf: leaf[:3], ground_truth())
    small = dataclasses.replace(truth, inverse_depth=truth.inverse_depth[:, ::6, ::8], lens=truth.lens / 7)
    priors = Priors.none(small, 1).with_poses(small.cameras(), 0.1, 0.05)
    config = AdjustmentConfig()
    matches = exact_matches(small)
    packed = normal_equations.pack(matches, 3)
    shape = Step(jnp.zeros((3, 6)), jnp.zeros(4), jnp.zeros((3, 2)), jnp.zeros((3, 16)))
    flat, unravel = jax.flatten_util.ravel_pytree(shape)
    jacobian = jax.jacfwd(lambda x: _signed_residuals(retract_linear_depth(small, unravel(x)), priors, packed, config))(
        flat
    )
    jacobian = np.asarray(jacobian, np.float64)
    used = np.r_[6:18, len(flat) - 48 : len(flat)]  # the first pose is fixed; no lens, no fits
    hessian = jacobian[:, used].T @ jacobian[:, used]
    known = np.diag(hessian) > 0
    expected = np.full(len(used), np.inf)
    expected[known] = np.diag(np.linalg.inv(hessian[np.ix_(known, known)]))
    found = depth_variance(matches, priors, small, config).ravel()
    np.testing.assert_allclose(found, expected[12:], rtol=0.02)


# Invariances -------------------------------------------------------------------------------------


def _noisy_problem():
    truth = ground_truth()
    start = perturbed(truth, metres=0.03, degrees=1, depth=0.1, kept=1)
    return exact_matches(truth, noise_px=0.2), start, Priors.none(start, 1).with_poses(truth.cameras(), 0.05, 0.03)


@pytest.mark.slow
def test_another_world_frame_gives_the_same_answer_in_that_frame():
    matches, start, priors = _noisy_problem()
    move = jaxlie.SE3.exp(jnp.array([1.0, -2.0, 0.5, 0.4, -0.3, 0.8]))

    def moved(variables):
        return dataclasses.replace(variables, poses=variables.poses @ move)

    config = AdjustmentConfig()
    here = solve(matches, priors, start, config).variables
    there = solve(matches, moved(priors), moved(start), config).variables
    np.testing.assert_allclose(there.inverse_depth, here.inverse_depth, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose((there.poses @ moved(here).poses.inverse()).log(), 0, atol=1e-4)


@pytest.mark.slow
def test_another_unit_of_length_gives_the_same_answer_in_that_unit():
    matches, start, priors = _noisy_problem()
    unit = 50.0

    def scaled(v):
        poses = jaxlie.SE3.from_rotation_and_translation(v.poses.rotation(), v.poses.translation() * unit)
        return dataclasses.replace(v, poses=poses, inverse_depth=v.inverse_depth / unit)

    bigger = dataclasses.replace(
        scaled(priors), pose_information=priors.pose_information / jnp.array([unit**2] * 3 + [1.0] * 3)
    )
    here = scaled(solve(matches, priors, start, AdjustmentConfig()).variables)
    there = solve(matches, bigger, scaled(start), AdjustmentConfig()).variables
    np.testing.assert_allclose(there.inverse_depth, here.inverse_depth, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(there.poses.translation(), here.poses.translation(), atol=2e-3)


@pytest.mark.slow
def test_the_order_of_frames_and_edges_does_not_matter():
    matches, start, priors = _noisy_problem()
    frames, edges = np.random.default_rng(0).permutation(6), np.random.default_rng(1).permutation(len(matches.source))
    place = np.argsort(frames)

    def shuffled(tree):
        return jax.tree.map(lambda leaf: leaf[frames] if leaf.shape[:1] == (6,) else leaf, tree)

    other = Matches(
        jnp.asarray(place)[matches.source[edges]], jnp.asarray(place)[matches.target[edges]],
        matches.pixels[edges], matches.weights[edges], matches.degree,
    )  # fmt: skip
    here = solve(matches, priors, start, AdjustmentConfig()).variables
    there = solve(other, shuffled(priors), shuffled(start), AdjustmentConfig()).variables
    np.testing.assert_allclose(there.inverse_depth, here.inverse_depth[frames], rtol=2e-3, atol=1e-4)


# Derivatives of the solution ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_solution_is_differentiable_in_its_inputs():
    """Gradient of a function of the solution against central differences, for matches, weights and priors."""
    matches, start, priors = _noisy_problem()
    config = AdjustmentConfig(iterations=8)
    generator = np.random.default_rng(0)

    @jax.jit
    def value(inputs):
        pixels, weights, depth = inputs
        given = dataclasses.replace(matches, pixels=pixels, weights=weights)
        prior = dataclasses.replace(priors.with_depth(1 / start.inverse_depth, 0.2), inverse_depth=depth)
        found = adjust(given, prior, start, config).variables
        return found.poses.translation()[1:].sum() + 0.1 * found.inverse_depth.mean()

    inputs = (matches.pixels, matches.weights, start.inverse_depth)
    gradient = jax.grad(value)(inputs)
    for which, step in ((0, 0.02), (1, 0.02), (2, 0.01)):
        direction = jnp.asarray(generator.normal(size=inputs[which].shape), jnp.float32)
        direction = (direction + jnp.sign(gradient[which])) * (inputs[which] > 0)

        def along(size, which=which, direction=direction):
            return float(value(tuple(x + size * direction if i == which else x for i, x in enumerate(inputs))))

        numeric = (along(step) - along(-step)) / (2 * step)
        assert abs(float((gradient[which] * direction).sum()) - numeric) < 0.05 * abs(numeric)


# Nothing to adjust -------------------------------------------------------------------------------


def _nothing(name: str):
    """(matches, priors, start) of a window that says nothing, or nothing new."""
    truth = ground_truth()
    matches, priors = exact_matches(truth), Priors.none(truth, 1)
    if name == "one frame":
        one = jax.tree.map(lambda leaf: leaf[:1], truth)
        empty = Matches(
            jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros((0, 24, 32, 2)), jnp.zeros((0, 24, 32, 2)), 1
        )
        return empty, Priors.none(one, 1), one
    if name == "all masked":
        return dataclasses.replace(matches, weights=jnp.zeros_like(matches.weights)), priors, truth
    if name == "not finite":
        return dataclasses.replace(matches, pixels=jnp.full_like(matches.pixels, jnp.nan)), priors, truth
    if name == "no overlap":
        return dataclasses.replace(matches, target=jnp.full_like(matches.target, -1)), priors, truth
    if name == "no motion":
        still = dataclasses.replace(
            truth, poses=jaxlie.SE3(jnp.broadcast_to(truth.poses.wxyz_xyz[:1], truth.poses.wxyz_xyz.shape)),
            inverse_depth=jnp.broadcast_to(truth.inverse_depth[:1], truth.inverse_depth.shape),
        )  # fmt: skip
        return exact_matches(still), Priors.none(still, 1), still
    turned = jaxlie.SE3.exp(jnp.array([0, 0, 0, 0, jnp.pi, 0]))  # every second camera looks the other way
    flips = jnp.where(jnp.arange(6)[:, None] % 2 == 0, jaxlie.SE3.identity().wxyz_xyz, turned.wxyz_xyz)
    back = dataclasses.replace(truth, poses=jaxlie.SE3(flips) @ truth.poses)
    across = ((matches.source - matches.target) % 2 == 1)[:, None, None, None]  # all that is left looks behind
    return dataclasses.replace(matches, weights=matches.weights * across), Priors.none(back, 1), back


@jax.jit
@jax.grad
def _cost_gradient(pixels, matches, priors, start):
    return adjust(dataclasses.replace(matches, pixels=pixels), priors, start, AdjustmentConfig(iterations=2)).costs[-1]


@pytest.mark.parametrize("name", ["one frame", "all masked", "not finite", "no overlap", "no motion", "all behind"])
@pytest.mark.slow
def test_a_window_that_says_nothing_stays_as_it_is(name):
    matches, priors, start = _nothing(name)
    config = AdjustmentConfig(iterations=2)
    found = solve(matches, priors, start, config)
    np.testing.assert_allclose(found.variables.poses.wxyz_xyz, start.poses.wxyz_xyz, atol=2e-6)
    np.testing.assert_allclose(found.variables.inverse_depth, start.inverse_depth, rtol=1e-4)
    assert np.isfinite(found.costs).all()
    assert not np.isnan(variance(matches, priors, found.variables, config)).any()
    assert np.isfinite(_cost_gradient(jnp.nan_to_num(matches.pixels), matches, priors, start)).all()


@pytest.mark.slow
def test_without_any_gauge_damping_holds_it():
    """Nothing is fixed and nothing has a prior: the matches are met all the same, near the start."""
    truth = ground_truth()
    start = perturbed(truth, metres=0.02, degrees=0.5, depth=0.05, kept=0)
    found = solve(exact_matches(truth), Priors.none(start, 0), start, AdjustmentConfig(iterations=10))
    assert found.costs[-1] < 1e-4 * found.costs[0]
    assert pose_errors(found.variables, start)[0].max() < 0.3


def test_a_kernel_of_no_width_is_refused():
    with pytest.raises(InputError, match="robust_px"):
        AdjustmentConfig(robust_px=0.0)
    with pytest.raises(InputError, match="damping"):
        AdjustmentConfig(damping_up=0.5)


@pytest.mark.slow
def test_the_cost_is_what_the_solution_reports():
    matches, start, priors = _noisy_problem()
    config = AdjustmentConfig(iterations=4, robust_px=1.0)
    found = solve(matches, priors, start, config)
    cost = total_cost(found.variables, priors, normal_equations.pack(matches, 6), config)
    np.testing.assert_allclose(found.costs[-1], cost, rtol=1e-5)
    assert max_degree(matches.source, 6) == matches.degree == 4


# Another solver ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_noisy_matches_have_the_optimum_that_scipy_finds():
    """Noise of 0.5 px of a 48 x 64 grid; scipy in float64, rotation vectors, Jacobians by finite differences."""
    from scipy.optimize import least_squares
    from scipy.sparse import lil_matrix
    from scipy.spatial.transform import Rotation

    full = jax.tree.map(lambda leaf: leaf[:4], ground_truth())
    truth = dataclasses.replace(full, inverse_depth=full.inverse_depth[:, ::3, ::4], lens=full.lens / jnp.float32(3.5))
    start = perturbed(truth, metres=0.05, degrees=2, depth=0.1, kept=2)
    matches = exact_matches(truth, noise_px=0.05)
    found = solve(matches, Priors.none(start, 2), start, AdjustmentConfig(iterations=20)).variables

    source, target = np.asarray(matches.source), np.asarray(matches.target)
    lens, n = np.asarray(truth.lens[0], np.float64), 64
    ray = np.column_stack([(np.asarray(pixel_grid(8, 8)).T - lens[2:]) / lens[:2], np.ones(n)])
    weights = np.asarray(matches.weights, np.float64).reshape(-1, n, 2)
    seen = np.asarray(matches.pixels, np.float64).reshape(-1, n, 2)
    base = np.asarray(start.poses.as_matrix(), np.float64)

    def residuals(x):
        pose = base.copy()
        turned = Rotation.from_rotvec(x[:12].reshape(2, 6)[:, :3]).as_matrix()
        pose[2:, :3, :3] = turned @ base[2:, :3, :3]
        pose[2:, :3, 3] = base[2:, :3, 3] + x[:12].reshape(2, 6)[:, 3:]
        relative = pose[target] @ np.linalg.inv(pose)[source]
        depth = x[12:].reshape(4, n)[source]
        point = ray @ relative[:, :3, :3].transpose(0, 2, 1) + depth[..., None] * relative[:, None, :3, 3]
        return (np.sqrt(weights) * (seen - point[..., :2] / point[..., 2:] * lens[:2] - lens[2:])).ravel()

    pattern = lil_matrix((len(source) * n * 2, 12 + 4 * n), dtype=int)
    for e, i in enumerate(source):
        rows = np.arange(e * 2 * n, (e + 1) * 2 * n)
        pattern[rows, :12] = 1
        pattern[rows, 12 + i * n + np.arange(2 * n) // 2] = 1
    x0 = np.r_[np.zeros(12), np.asarray(start.inverse_depth, np.float64).ravel()]
    best = least_squares(residuals, x0, jac_sparsity=pattern, x_scale="jac", max_nfev=200, xtol=1e-12, ftol=1e-12)

    packed = normal_equations.pack(matches, 4)
    ours = float(total_cost(found, Priors.none(start, 2), packed, AdjustmentConfig()))
    assert abs(ours / (2 * best.cost) - 1) < 0.01
    shift = best.x[:12].reshape(2, 6)
    their_centers = -np.einsum(
        "vji,vj->vi", Rotation.from_rotvec(shift[:, :3]).as_matrix() @ base[2:, :3, :3], base[2:, :3, 3] + shift[:, 3:]
    )
    # 1 % of the 5 cm that the start was off: with 64 pixels a frame the optimum is flat
    np.testing.assert_allclose(found.cameras().centers[2:], their_centers, atol=5e-4)

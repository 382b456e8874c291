"""The linearised system: derivatives, and the reduced system against the whole dense one."""

from __future__ import annotations

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from mapper.adjustment_scene import exact_matches, ground_truth, perturbed

from spatia_jax.mapper import normal_equations
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust, depth_variance, retract, variance_factor
from spatia_jax.mapper.normal_equations import Step, Unknowns
from spatia_jax.mapper.problem import Matches, Priors, Variables
from spatia_jax.mapper.reprojection import linearize, pixel_grid, warp

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


@pytest.mark.parametrize(("noise_px", "robust_px"), [(0.1, None), (0.3, None), (0.1, 0.5)])
def test_the_noise_of_the_matches_is_read_from_their_residuals(noise_px, robust_px):
    """Weights of 1 claim a noise of 1 px."""
    truth = ground_truth()
    matches, priors = exact_matches(truth, noise_px=noise_px), Priors.none(truth, 2)
    config = AdjustmentConfig(iterations=6, robust_px=robust_px)
    found = adjust(matches, priors, truth, config).variables
    assert abs(float(variance_factor(matches, priors, found, config)) / noise_px**2 - 1) < 0.1

"""Bundle adjustment: exact recovery, invariances, derivatives, and what it does when there is nothing to adjust."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from mapper.adjustment_scene import exact_matches, ground_truth, perturbed, pose_errors

from spatia_jax.errors import InputError
from spatia_jax.mapper import normal_equations
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust, depth_variance, total_cost
from spatia_jax.mapper.problem import Matches, Priors, max_degree

solve = jax.jit(adjust, static_argnums=3)
variance = jax.jit(depth_variance, static_argnums=3)


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

"""Solvers: order of accuracy, agreement with the textbook, given frames, and step by step against scan."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax import diffusion
from spatia_jax.errors import InputError

SHAPE = (1, 4, 3, 2, 2)


def exact_schedule(name, steps, shift=5.0):
    """A solver's levels, with timesteps that are not truncated: the solver's own error remains."""
    schedule = diffusion.SOLVERS[name].schedule(steps, shift)
    return dataclasses.replace(schedule, timesteps=1000 * schedule.sigmas[:-1])


def gaussian_velocity(latents, timestep, mean=0.7, std=0.5):
    """The exact velocity where the data are Gaussian: a linear ODE whose solution is known."""
    sigma = timestep / 1000
    variance = ((1 - sigma) * std) ** 2 + sigma**2
    x0 = mean + (1 - sigma) * std**2 / variance * (latents - (1 - sigma) * mean)
    return (latents - x0) / sigma


def gaussian_solution(noise, start, end, mean=0.7, std=0.5):
    """Where the path through `noise` at noise level `start` is at level `end`: a point keeps its quantile."""
    spread = [np.sqrt(((1 - sigma) * std) ** 2 + sigma**2) for sigma in (start, end)]
    return (1 - end) * mean + spread[1] / spread[0] * (noise - (1 - start) * mean)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("unipc", 2)])
def test_error_falls_with_the_order_of_the_solver(name, order):
    noise = jax.random.normal(jax.random.key(0), SHAPE)
    errors = []
    for steps in (16, 32, 64):
        sigmas = 1 / (1 + np.exp(np.linspace(-2.0, 4.0, steps + 1)))  # even in lambda, as the solver's theory has it
        plan = diffusion.plan_schedule(diffusion.SOLVERS[name], diffusion.Schedule(1000 * sigmas[:-1], sigmas))
        answer = diffusion.sample(gaussian_velocity, noise, plan)
        errors.append(np.abs(answer - gaussian_solution(noise, sigmas[0], sigmas[-1])).max())
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(slopes > order - 0.2), (errors, slopes)
    assert order == 2 or np.all(slopes < 1.2)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_released_levels_reach_the_data(name):
    noise = jax.random.normal(jax.random.key(0), SHAPE)
    errors = []
    for steps in (20, 80):
        schedule = exact_schedule(name, steps)
        answer = diffusion.sample(gaussian_velocity, noise, diffusion.plan_schedule(diffusion.SOLVERS[name], schedule))
        errors.append(np.abs(answer - gaussian_solution(noise, schedule.sigmas[0], 0.0)).max())
    assert errors[1] < min(0.08, errors[0] / 2), errors


def textbook_unipc(denoise, x, sigmas, timesteps):
    """UniPC-2, B2(h), data prediction, written from the paper's algorithm with loops and a list of model outputs."""
    sigmas = np.asarray(sigmas, np.float64)
    lambdas = np.log((1 - sigmas) / np.maximum(sigmas, 1e-300))
    outputs, start, order = [], None, 1
    for i, timestep in enumerate(timesteps):
        now = x - sigmas[i] * denoise(x, timestep)
        if i > 0:
            x = update(start, outputs, sigmas, lambdas, i - 1, i, order, corrector=now)
        outputs = [*outputs, now]
        order = min(2, i + 1, len(timesteps) - i)
        start = x
        x = update(start, outputs, sigmas, lambdas, i, i + 1, order)
    return x


def update(x, outputs, sigmas, lambdas, s, t, order, corrector=None):
    h = lambdas[t] - lambdas[s]
    phi = np.expm1(-h)
    points = [(lambdas[s - 1] - lambdas[s]) / h] if order == 2 else []
    values = [(outputs[s - 1] - outputs[s]) / points[0]] if order == 2 else []
    if corrector is None:
        weights = [0.5] * len(points)
    else:
        points, values = [*points, 1.0], [*values, corrector - outputs[s]]
        factor, factorial, conditions = phi / -h - 1, 1, []
        for k in range(1, order + 1):
            conditions.append(factor * factorial / phi)
            factorial *= k + 1
            factor = factor / -h - 1 / factorial
        powers = np.array([[r**k for r in points] for k in range(order)])
        weights = [0.5] if order == 1 else np.linalg.solve(powers, conditions)
    slope = sum((w * d for w, d in zip(weights, values, strict=True)), np.zeros_like(x))
    return sigmas[t] / sigmas[s] * x - (1 - sigmas[t]) * phi * (outputs[s] + slope)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_unipc_agrees_with_the_textbook(steps):
    schedule = diffusion.unipc_schedule(steps, 5.0)
    noise = jax.random.normal(jax.random.key(1), SHAPE)

    def denoise(latents, timestep, tanh):
        return tanh(latents * (1 + timestep / 500)) - 0.3 * latents

    answer = diffusion.sample(
        functools.partial(denoise, tanh=jnp.tanh), noise, diffusion.SamplerConfig("unipc", steps, 5.0)
    )
    expected = textbook_unipc(
        functools.partial(denoise, tanh=np.tanh), np.asarray(noise, np.float64), schedule.sigmas, schedule.timesteps
    )
    np.testing.assert_allclose(answer, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_one_known_answer_is_reached_from_any_noise(name):
    target = jax.random.normal(jax.random.key(2), SHAPE)
    config = diffusion.SamplerConfig(name, steps=5)
    answer = diffusion.sample(
        lambda latents, timestep: target, 9 * jnp.ones(SHAPE), config, parametrization=diffusion.Clean()
    )
    np.testing.assert_allclose(answer, target, atol=1e-5)


@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_given_frames_are_seen_and_returned_as_given(name):
    clean = jax.random.normal(jax.random.key(3), SHAPE)
    is_clean = jnp.array([True, False, True, False])
    noise = jax.random.normal(jax.random.key(4), SHAPE)
    plan = diffusion.make_plan(diffusion.SamplerConfig(name, steps=4))

    def denoise(latents, timestep):
        """New frames follow the given ones; the given ones are pulled away."""
        given = latents[:, is_clean].mean(axis=1, keepdims=True)
        return gaussian_velocity(latents, timestep) - given + 3 * is_clean[:, None, None, None]

    state, seen = diffusion.init_state(noise, clean=clean, is_clean=is_clean), []
    for row in plan:
        seen.append(state.latents)
        state = diffusion.step(denoise, state, row, clean=clean, is_clean=is_clean)
    for latents in [*seen, state.latents]:
        np.testing.assert_array_equal(latents[:, is_clean], clean[:, is_clean])
    scanned = diffusion.sample(denoise, noise, plan, clean=clean, is_clean=is_clean)
    np.testing.assert_allclose(scanned, state.latents, rtol=1e-6, atol=1e-6)

    other = diffusion.sample(denoise, noise, plan, clean=clean + 1, is_clean=is_clean)
    assert np.abs(other - scanned)[:, ~is_clean].min() > 1e-3  # what is given reaches what is new


def test_a_batch_axis_changes_nothing():
    noise = jax.random.normal(jax.random.key(5), SHAPE)
    config = diffusion.SamplerConfig("unipc", steps=4)
    is_clean = jnp.arange(SHAPE[1]) == 0
    batched = diffusion.sample(gaussian_velocity, noise, config, clean=jnp.zeros(SHAPE), is_clean=is_clean)
    single = diffusion.sample(gaussian_velocity, noise[0], config, clean=jnp.zeros(SHAPE[1:]), is_clean=is_clean)
    np.testing.assert_allclose(batched[0], single, rtol=1e-6, atol=1e-6)


def test_half_of_the_pair_clean_and_is_clean_is_refused():
    with pytest.raises(InputError, match="both or neither"):
        diffusion.sample(gaussian_velocity, jnp.zeros(SHAPE), diffusion.SamplerConfig(), clean=jnp.zeros(SHAPE))


def test_guidance_extrapolates_and_costs_nothing_at_one():
    calls = []

    def network(condition):
        def denoise(latents, timestep):
            calls.append(condition)
            return condition * latents

        return denoise

    latents, timestep = jnp.ones(SHAPE), jnp.float32(500)
    np.testing.assert_allclose(diffusion.guided(network(3.0), network(1.0), 3.5)(latents, timestep), 8.0)
    assert sorted(calls) == [1.0, 3.0]
    calls.clear()
    np.testing.assert_allclose(diffusion.guided(network(3.0), network(1.0), 1.0)(latents, timestep), 3.0)
    assert calls == [3.0]


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_guidance_is_the_same_in_both_parametrisations(scale):
    """Mixing estimates of x0 gives what mixing velocities gives."""
    noise = jax.random.normal(jax.random.key(6), SHAPE)
    plan = diffusion.plan_schedule(diffusion.UniPC(), exact_schedule("unipc", 6))

    def clean(mean):
        def denoise(x, t):
            return x - t / 1000 * gaussian_velocity(x, t, mean)

        return denoise

    def velocity(mean):
        return functools.partial(gaussian_velocity, mean=mean)

    by_velocity = diffusion.sample(diffusion.guided(velocity(1.0), velocity(0.0), scale), noise, plan)
    by_clean = diffusion.sample(
        diffusion.guided(clean(1.0), clean(0.0), scale), noise, plan, parametrization=diffusion.Clean()
    )
    np.testing.assert_allclose(by_clean, by_velocity, rtol=1e-4, atol=1e-4)

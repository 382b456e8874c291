"""The path, the two parametrisations and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax import diffusion
from spatia_jax.errors import InputError

SHAPE = (3, 5, 2, 4, 6)
IS_NEW = jnp.array([False, False, False, True, True])
IS_HISTORY = jnp.array([False, True, True, False, False])
PARAMETRIZATIONS = [diffusion.Velocity(), diffusion.Clean(floor=0.05)]


def noisy_clip(seed=0, **config):
    x0 = jax.random.normal(jax.random.key(seed), SHAPE)
    return x0, diffusion.add_noise(jax.random.key(seed + 1), x0, IS_NEW, IS_HISTORY, diffusion.FlowConfig(**config))


def exact_output(parametrization, x0, noisy):
    return x0 if isinstance(parametrization, diffusion.Clean) else noisy.noise - x0


def test_noise_goes_where_it_belongs():
    x0, noisy = noisy_clip()
    sigma = np.asarray(noisy.sigma)
    np.testing.assert_array_equal(noisy.latents[:, 0], x0[:, 0])  # a reference: clean
    assert np.all(sigma[:, 0] == 0)
    assert np.all((sigma[:, 1:3] > 0) & (sigma[:, 1:3] <= 0.05))  # history: at most 50 of 1000
    np.testing.assert_array_equal(sigma[:, 3], sigma[:, 4])  # one level a clip
    assert len(np.unique(sigma[:, 3])) == len(sigma)
    np.testing.assert_allclose(noisy.timesteps, np.where(IS_NEW, 1000 * sigma, 0))
    level = sigma[:, :, None, None, None]
    np.testing.assert_allclose(noisy.latents, (1 - level) * x0 + level * noisy.noise, atol=1e-6)


def test_history_noise_can_be_switched_off():
    x0, noisy = noisy_clip(history_noise=0.0)
    np.testing.assert_array_equal(noisy.latents[:, :3], x0[:, :3])


def test_noise_levels_are_a_shifted_logit_normal():
    config = diffusion.FlowConfig(shift=3.0, logit_mean=-0.4, logit_std=0.8)
    sigma = diffusion.sample_sigma(jax.random.key(0), (20000,), config)
    unshifted = diffusion.shift_sigma(np.asarray(sigma, np.float64), 1 / 3.0)
    logit = np.log(unshifted / (1 - unshifted))
    np.testing.assert_allclose([logit.mean(), logit.std()], [-0.4, 0.8], atol=0.02)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_loss_is_zero_at_the_exact_answer_only(parametrization):
    x0, noisy = noisy_clip()
    output = exact_output(parametrization, x0, noisy)
    assert diffusion.flow_loss(output, x0, noisy, IS_NEW, parametrization) < 1e-12
    worse = output.at[1, 3, 0, 0, 0].add(0.1)
    assert diffusion.flow_loss(worse, x0, noisy, IS_NEW, parametrization) > 1e-5


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_loss_ignores_given_frames_even_where_they_are_not_finite(parametrization):
    x0, noisy = noisy_clip()
    output = jax.random.normal(jax.random.key(7), SHAPE)
    loss = diffusion.flow_loss(output, x0, noisy, IS_NEW, parametrization)
    spoiled = jnp.where(IS_NEW[:, None, None, None], output, jnp.inf)
    assert diffusion.flow_loss(spoiled, x0, noisy, IS_NEW, parametrization) == loss
    gradient = jax.grad(diffusion.flow_loss)(output, x0, noisy, IS_NEW, parametrization)
    assert np.all(gradient[:, ~IS_NEW] == 0)
    assert np.all(gradient[:, IS_NEW] != 0)


def test_loss_is_the_mean_over_new_frames():
    x0, noisy = noisy_clip()
    output = noisy.noise - x0 + 2.0
    np.testing.assert_allclose(diffusion.flow_loss(output, x0, noisy, IS_NEW, diffusion.Velocity()), 4.0, rtol=1e-5)


def test_parametrisations_agree_above_the_floor():
    x0, noisy = noisy_clip()
    velocity, clean = diffusion.Velocity(), diffusion.Clean(floor=1e-3)
    sigma = noisy.sigma[:, :, None, None, None]
    output = jax.random.normal(jax.random.key(8), SHAPE)
    as_clean = velocity.clean(output, noisy.latents, sigma)
    new = np.asarray(IS_NEW)
    np.testing.assert_allclose(
        clean.velocity(as_clean, noisy.latents, sigma)[:, new], output[:, new], rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        diffusion.flow_loss(as_clean, x0, noisy, IS_NEW, clean),
        diffusion.flow_loss(output, x0, noisy, IS_NEW, velocity),
        rtol=1e-4,
    )


def test_floor_bounds_the_weight_of_nearly_clean_inputs():
    clean, error = diffusion.Clean(floor=0.2), jnp.full((1,), 0.1)
    weights = [
        float(clean.residual(error, 0.0, 0.0, jnp.float32(sigma))[0] / error[0]) for sigma in (0.0, 0.1, 0.2, 0.5)
    ]
    np.testing.assert_allclose(weights, [5, 5, 5, 2], rtol=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="shift > 0"):
        diffusion.FlowConfig(shift=0)
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        diffusion.Clean(floor=0)

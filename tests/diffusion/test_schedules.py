"""Noise levels against the released schedulers."""

import numpy as np
import pytest

from spatia_jax import diffusion
from spatia_jax.errors import InputError


def golden_schedules(golden_dir):
    """(name of the solver, steps, shift, timesteps, sigmas) of everything in schedules.npz."""
    arrays = np.load(golden_dir / "schedules.npz")
    for key in arrays:
        prefix, _, setting = key.partition("sigmas_")
        if setting:
            steps, shift = setting.split("_")
            name = "euler" if prefix == "euler_" else "unipc"
            yield name, int(steps), float(shift), arrays[f"{prefix}timesteps_{setting}"], arrays[key]


def test_golden_schedules(golden_dir):
    compared = 0
    for name, steps, shift, timesteps, sigmas in golden_schedules(golden_dir):
        schedule = diffusion.SOLVERS[name].schedule(steps, shift)
        np.testing.assert_array_equal(schedule.timesteps, timesteps, err_msg=f"{name} {steps} {shift}")
        np.testing.assert_allclose(schedule.sigmas[: len(sigmas)], sigmas, rtol=0, atol=1e-6)
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", ["unipc", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_levels_fall_from_noise_to_zero(name, steps):
    schedule = diffusion.SOLVERS[name].schedule(steps, 5.0)
    assert len(schedule) == steps
    assert np.all(np.diff(schedule.sigmas) < 0)
    assert schedule.sigmas[0] >= 0.999
    assert schedule.sigmas[-1] == 0
    assert np.all(np.abs(schedule.timesteps - 1000 * schedule.sigmas[:-1]) < 1)


def test_shift_moves_towards_noise_and_keeps_the_ends():
    sigma = np.linspace(0, 1, 11)
    shifted = diffusion.shift_sigma(sigma, 5.0)
    np.testing.assert_allclose(shifted[[0, -1]], [0, 1])
    assert np.all(shifted[1:-1] > sigma[1:-1])
    np.testing.assert_allclose(diffusion.shift_sigma(shifted, 1 / 5.0), sigma, atol=1e-12)


def test_bad_settings_are_refused_in_one_line():
    with pytest.raises(InputError, match="unipc, euler"):
        diffusion.SamplerConfig(solver="ddim")
    with pytest.raises(InputError, match="steps >= 1"):
        diffusion.SamplerConfig(steps=0)

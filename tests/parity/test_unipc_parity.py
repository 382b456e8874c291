"""UniPC against UniPCMultistepScheduler of diffusers, in the setting of the Wan pipelines.

The release's unshifted grid of noise levels falls from 0.999 to 0, that of diffusers from 1 (less 1e-6) to 1/1000. The
solver is compared on both, the schedule on the release's, which diffusers can be given.
"""

import jax
import numpy as np
import pytest
from parity.peers import assert_close, package, torch

from spatia_jax import diffusion

diffusers = package("diffusers")

pytestmark = pytest.mark.parity

SHIFT = 5.0


def scheduler(steps, grid):
    peer = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=SHIFT,
        solver_order=2,
        solver_type="bh2",
        predict_x0=True,
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    if grid == "release":
        peer.set_timesteps(sigmas=np.linspace(np.float32(0.999), 0, steps + 1)[:-1])
    else:
        peer.set_timesteps(steps)
    return peer


def velocity(latents, timestep):
    """A denoiser of no meaning, for jax and torch arrays: not linear in the latents, and told the time."""
    return (1.5 - timestep / 1000) * latents / (1 + latents * latents) + 0.3


@pytest.mark.parametrize("steps", [1, 2, 20, 40])
def test_schedule_equals_diffusers_on_the_released_grid(steps):
    ours, peer = diffusion.unipc_schedule(steps, SHIFT), scheduler(steps, "release")
    np.testing.assert_array_equal(ours.timesteps, peer.timesteps.numpy())
    np.testing.assert_allclose(ours.sigmas, peer.sigmas.numpy(), rtol=2e-7, atol=0)  # neighbours in float32


@pytest.mark.parametrize("grid", ["release", "diffusers"])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_every_step_equals_diffusers(steps, grid):
    peer = scheduler(steps, grid)
    schedule = diffusion.Schedule(peer.timesteps.numpy().astype(np.float32), peer.sigmas.numpy())
    noise = np.random.default_rng(steps).normal(size=(1, 3, 4, 4, 6)).astype(np.float32)

    theirs = []
    latents = torch.from_numpy(noise)
    for timestep in peer.timesteps:
        latents = peer.step(velocity(latents, timestep.float()), timestep, latents).prev_sample
        theirs.append(latents.numpy())

    ours = []
    state = diffusion.init_state(jax.numpy.asarray(noise))
    for row in diffusion.plan_schedule(diffusion.UniPC(), schedule):
        state = diffusion.step(velocity, state, row)
        ours.append(np.asarray(state.latents))
    assert_close(np.stack(ours), np.stack(theirs))

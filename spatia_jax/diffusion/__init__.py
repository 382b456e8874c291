"""Flow matching: path, loss, noise levels, solvers, guidance. Pure functions that know of no network."""

from spatia_jax.diffusion.flow import (
    Clean,
    FlowConfig,
    NoisyLatents,
    Parametrization,
    Velocity,
    add_noise,
    flow_loss,
    interpolate,
    sample_sigma,
)
from spatia_jax.diffusion.guidance import guided
from spatia_jax.diffusion.samplers import (
    Denoiser,
    Plan,
    SamplerConfig,
    SamplerState,
    frame_timesteps,
    init_state,
    make_plan,
    plan_schedule,
    sample,
    step,
)
from spatia_jax.diffusion.schedules import Schedule, euler_schedule, shift_sigma, unipc_schedule
from spatia_jax.diffusion.solvers import SOLVERS, Euler, Solver, UniPC

__all__ = [
    "SOLVERS",
    "Clean",
    "Denoiser",
    "Euler",
    "FlowConfig",
    "NoisyLatents",
    "Parametrization",
    "Plan",
    "SamplerConfig",
    "SamplerState",
    "Schedule",
    "Solver",
    "UniPC",
    "Velocity",
    "add_noise",
    "euler_schedule",
    "flow_loss",
    "frame_timesteps",
    "guided",
    "init_state",
    "interpolate",
    "make_plan",
    "plan_schedule",
    "sample",
    "sample_sigma",
    "shift_sigma",
    "step",
    "unipc_schedule",
]

"""Denoising: one scan over the rows of a solver's tables.

A sampler knows no network. It calls `denoise(latents, timestep)`, turns the output into an estimate of x0, and applies
equations (1) and (2) of solvers.py. Frames that are given (references, history, the input photo) are put back after
every step, so the network always sees them clean.

The scan's body, `step`, is public: a driver that wants to show progress calls it once for each row of the plan,

    plan, state = make_plan(config), init_state(noise, clean=clean, is_clean=is_clean)
    for row in plan:
        state = step(denoise, state, row, clean=clean, is_clean=is_clean)

and gets the numbers of `sample`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spatia_jax.diffusion.flow import Parametrization, Velocity
from spatia_jax.diffusion.schedules import Schedule
from spatia_jax.diffusion.solvers import SOLVERS, Solver
from spatia_jax.errors import InputError

Denoiser = Callable[[Array, Array], Array]
"""(latents [*b, f, p, q, c], timestep [] of 1000) -> the network's output [*b, f, p, q, c]."""


_VELOCITY = Velocity()


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to denoise; the defaults are those of the released script (spec 2.2).

    Attributes:
        solver: "unipc" or "euler".
        steps: calls of the network (twice as many with guidance).
        shift: timestep shift of the noise levels.
    """

    solver: str = "unipc"
    steps: int = 40
    shift: float = 5.0

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise InputError(f"solver {self.solver!r} is not known; choose one of {', '.join(SOLVERS)}")
        if self.steps < 1 or self.shift <= 0:
            raise InputError(f"steps {self.steps}, shift {self.shift}: needs steps >= 1 and shift > 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """All numbers of a run, one row a step. Iterating yields the rows (the same class without the leading axis).

    Attributes:
        timestep: [n], what the network is told.
        sigma: [n], noise level of the model input.
        corrector: [n, 5] and predictor: [n, 3], the solver's tables.
    """

    timestep: Any  # arrays of jax or numpy
    sigma: Any
    corrector: Any
    predictor: Any

    def __len__(self) -> int:
        return len(self.timestep)

    def __iter__(self) -> Iterator[Plan]:
        tables = jax.tree.map(jnp.asarray, self)
        return (jax.tree.map(operator.itemgetter(i), tables) for i in range(len(self)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
    """What one step hands to the next.

    Attributes:
        latents: [*b, f, p, q, c] float32, the next model input; the answer, after the last step.
        anchor: as latents: the sample that the last prediction started from.
        history: ([...], [...]) as latents: the estimates of x0 one and two steps ago.
    """

    latents: Array
    anchor: Array
    history: tuple[Array, Array]


def make_plan(config: SamplerConfig) -> Plan:
    """The numbers of a run (numpy: made once, before tracing)."""
    solver = SOLVERS[config.solver]
    return plan_schedule(solver, solver.schedule(config.steps, config.shift))


def plan_schedule(solver: Solver, schedule: Schedule) -> Plan:
    """The numbers of a run on a schedule of one's own."""
    corrector, predictor = solver.tables(schedule.sigmas)
    return Plan(schedule.timesteps, schedule.sigmas[:-1], corrector.astype(np.float32), predictor.astype(np.float32))


def init_state(
    latents: Float[Array, "*b f p q c"],
    *,
    clean: Float[Array, "*b f p q c"] | None = None,
    is_clean: Bool[Array, " f"] | None = None,
) -> SamplerState:
    """Start from noise, with the given frames in place."""
    latents = _put_back(latents.astype(jnp.float32), clean, is_clean)
    return SamplerState(latents, latents, (jnp.zeros_like(latents), jnp.zeros_like(latents)))


def step(
    denoise: Denoiser,
    state: SamplerState,
    row: Plan,
    *,
    parametrization: Parametrization = _VELOCITY,
    clean: Float[Array, "*b f p q c"] | None = None,
    is_clean: Bool[Array, " f"] | None = None,
) -> SamplerState:
    """One denoising step (solvers.py, equations 1 and 2)."""
    output = denoise(state.latents, row.timestep).astype(jnp.float32)
    estimate = parametrization.clean(output, state.latents, row.sigma)
    last, before = state.history
    anchor = _combine(row.corrector, state.latents, state.anchor, estimate, last, before)
    latents = _combine(row.predictor, anchor, estimate, last)
    return SamplerState(_put_back(latents, clean, is_clean), anchor, (estimate, last))


def sample(
    denoise: Denoiser,
    latents: Float[Array, "*b f p q c"],
    plan: Plan | SamplerConfig,
    *,
    parametrization: Parametrization = _VELOCITY,
    clean: Float[Array, "*b f p q c"] | None = None,
    is_clean: Bool[Array, " f"] | None = None,
) -> Float[Array, "*b f p q c"]:
    """Denoise `latents` from noise to data in one `lax.scan`.

    Args:
        denoise: the network with its conditions and guidance closed over; called once a step.
        latents: the starting noise, unit normal.
        plan: a SamplerConfig, or a plan made by `make_plan` or `plan_schedule`.
        parametrization: what the network's output means.
        clean: latents that hold the given frames; read only where `is_clean` is true.
        is_clean: which latent frames are given.

    Returns:
        Latents in float32, the given frames as given.
    """
    plan = make_plan(plan) if isinstance(plan, SamplerConfig) else plan

    def body(state: SamplerState, row: Plan) -> tuple[SamplerState, None]:
        return step(denoise, state, row, parametrization=parametrization, clean=clean, is_clean=is_clean), None

    state, _ = jax.lax.scan(body, init_state(latents, clean=clean, is_clean=is_clean), plan)
    return state.latents


def frame_timesteps(timestep: Float[Array, ""], is_clean: Bool[Array, " f"]) -> Float[Array, " f"]:
    """What a network is told of each latent frame: `timestep`, but 0 where the frame is given."""
    return jnp.where(is_clean, 0.0, timestep)


def _combine(weights: Array, *arrays: Array) -> Array:
    return sum((weights[i] * array for i, array in enumerate(arrays[1:], 1)), weights[0] * arrays[0])


def _put_back(latents: Array, clean: Array | None, is_clean: Array | None) -> Array:
    if (clean is None) != (is_clean is None):
        raise InputError("clean and is_clean go together: give both or neither")
    if clean is None or is_clean is None:
        return latents
    return jnp.where(is_clean[:, None, None, None], clean.astype(latents.dtype), latents)

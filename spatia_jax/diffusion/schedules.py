"""Noise levels of a denoising run.

sigma is the share of noise in x_sigma = (1 - sigma) x0 + sigma noise: 1 is noise, 0 is data. A timestep shift s bends
a grid of noise levels towards noise,

    sigma' = s sigma / (1 + (s - 1) sigma)                                                                   (1)

The network is told 1000 sigma'. Both grids repeat the released sampler (spec 2.5): the numbers below are what its
weights were sampled with, down to the truncation of UniPC's timesteps and the float32 arithmetic of Euler's.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

NUM_TRAIN_TIMESTEPS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """n denoising steps, from sigmas[i] to sigmas[i + 1]. Static: numpy, made before any tracing.

    Attributes:
        timesteps: [n] float32, what the network is told (0..1000).
        sigmas: [n + 1] float32, what the solver computes with; falling, the last is 0.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)


def shift_sigma(sigma, shift: float):
    """Equation (1), for numbers, numpy and jax arrays alike."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unipc_schedule(steps: int, shift: float) -> Schedule:
    """Noise levels for UniPC: from the last training level but one down to 0, timesteps truncated to integers."""
    sigma_max = float(np.float32(1 - 1 / NUM_TRAIN_TIMESTEPS))
    sigmas = shift_sigma(np.linspace(sigma_max, 0.0, steps + 1)[:-1], shift)
    timesteps = np.trunc(NUM_TRAIN_TIMESTEPS * sigmas)
    return Schedule(timesteps.astype(np.float32), np.append(sigmas, 0.0).astype(np.float32))


def euler_schedule(steps: int, shift: float) -> Schedule:
    """Noise levels for Euler: from pure noise (sigma 1) down to 0, timesteps not truncated."""
    sigmas = shift_sigma(_linspace_to_zero(steps), shift)
    return Schedule(np.float32(NUM_TRAIN_TIMESTEPS) * sigmas, np.append(sigmas, np.float32(0.0)))


def _linspace_to_zero(steps: int) -> Float[np.ndarray, " steps"]:
    """1, ..., 1 / steps, rounded as the release's float32 grid is: a float32 stride counted from the nearer end, each
    point rounded once (a fused multiply-add)."""
    index = np.arange(steps)
    stride = np.float64(np.float32(1.0) / np.float32(steps))
    return np.where(index < (steps + 1) // 2, 1 - stride * index, stride * (steps - index)).astype(np.float32)

"""ODE solvers as tables of numbers.

Every solver here is linear in what it keeps: the model input x, the sample a that the last prediction started from,
and the estimates of x0 now (m0) and at the two steps before (m1, m2). One step from sigma_i to sigma_{i+1} is

    a' = c_x x + c_a a + c_0 m0 + c_1 m1 + c_2 m2              (corrector: improve the sample at sigma_i)      (1)
    x' = p_a a' + p_0 m0 + p_1 m1                              (predictor: go to sigma_{i+1})                  (2)

so a solver is two tables, c [n, 5] and p [n, 3], computed here in float64 and scanned over in samplers.py. Orders that
change along the way (the first and last steps are of order 1) are zeros in the tables, not branches.

Euler is x' = x + (sigma_{i+1} - sigma_i) v with v = (x - m0) / sigma_i.

UniPC (Zhao et al. 2023), order 2, variant B_2(h), predicting x0, on alpha = 1 - sigma, lambda = log(alpha / sigma):
from sigma_s to sigma_t with h = lambda_t - lambda_s, phi = expm1(-h),

    x_t = (sigma_t / sigma_s) x_s - alpha_t phi m_s - alpha_t phi sum_k rho_k (m_k - m_s) / r_k                (3)

where r_k = (lambda_k - lambda_s) / h. The predictor has k = the step before s, rho = 1/2; the corrector has besides
k = t itself (r = 1) and takes rho from its order conditions. The order-1 predictor is Euler, exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from spatia_jax.diffusion.schedules import Schedule, euler_schedule, unipc_schedule

_X, _A, _M0, _M1, _M2 = range(5)  # columns of the corrector; the predictor has the middle three
_KEEP_X = np.eye(5)[_X]


@runtime_checkable
class Solver(Protocol):
    """A grid of noise levels and the two tables for it."""

    def schedule(self, steps: int, shift: float) -> Schedule:
        """The noise levels that this solver is used with."""

    def tables(self, sigmas: Float[np.ndarray, " levels"]) -> tuple[np.ndarray, np.ndarray]:
        """Corrector [n, 5] and predictor [n, 3] for equations (1) and (2)."""


@dataclasses.dataclass(frozen=True)
class Euler:
    """First order, no corrector."""

    def schedule(self, steps: int, shift: float) -> Schedule:
        return euler_schedule(steps, shift)

    def tables(self, sigmas: Float[np.ndarray, " levels"]) -> tuple[np.ndarray, np.ndarray]:
        sigmas = np.asarray(sigmas, np.float64)
        ratio = sigmas[1:] / sigmas[:-1]
        return np.tile(_KEEP_X, (len(ratio), 1)), np.stack([ratio, 1 - ratio, np.zeros_like(ratio)], axis=1)


@dataclasses.dataclass(frozen=True)
class UniPC:
    """Second order, with a corrector from the second step on; first and last prediction of first order."""

    def schedule(self, steps: int, shift: float) -> Schedule:
        return unipc_schedule(steps, shift)

    def tables(self, sigmas: Float[np.ndarray, " levels"]) -> tuple[np.ndarray, np.ndarray]:
        sigmas = np.asarray(sigmas, np.float64)
        steps = len(sigmas) - 1
        with np.errstate(divide="ignore"):  # the last level is 0: lambda is infinite, and equation (3) gives m0
            lambdas = np.log1p(-sigmas) - np.log(sigmas)
        orders = [1 if i in (0, steps - 1) else 2 for i in range(steps)]
        corrector, predictor = np.tile(_KEEP_X, (steps, 1)), np.zeros((steps, 3))
        for i in range(steps):
            predictor[i] = _predict(sigmas, lambdas, i, orders[i])
            if i > 0:
                corrector[i] = _correct(sigmas, lambdas, i, orders[i - 1])
        return corrector, predictor


def _predict(sigmas: np.ndarray, lambdas: np.ndarray, i: int, order: int) -> np.ndarray:
    """Weights of (a', m0, m1) that lead from level i to level i + 1."""
    h = lambdas[i + 1] - lambdas[i]
    gain = -(1 - sigmas[i + 1]) * np.expm1(-h)
    row = np.array([sigmas[i + 1] / sigmas[i], gain, 0.0])
    if order == 2:
        slope = 0.5 * gain * h / (lambdas[i - 1] - lambdas[i])
        row += slope * np.array([0, -1, 1])
    return row


def _correct(sigmas: np.ndarray, lambdas: np.ndarray, i: int, order: int) -> np.ndarray:
    """Weights of (x, a, m0, m1, m2) that lead from level i - 1 once more to level i, now that m0 is known there."""
    h = lambdas[i] - lambdas[i - 1]
    gain = -(1 - sigmas[i]) * np.expm1(-h)
    row = np.zeros(5)
    row[[_A, _M1]] = sigmas[i] / sigmas[i - 1], gain
    if order == 1:
        rho_now = 0.5
    else:
        r = (lambdas[i - 2] - lambdas[i - 1]) / h
        rho_before, rho_now = np.linalg.solve([[1, 1], [r, 1]], _order_conditions(-h))
        row[[_M2, _M1]] += gain * rho_before / r * np.array([1, -1])
    row[[_M0, _M1]] += gain * rho_now * np.array([1, -1])
    return row


def _order_conditions(z: float) -> tuple[float, float]:
    """k! phi_{k+1}(z) / phi_1(z) for k = 1, 2, where phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z, all over 1 / z."""
    first = np.expm1(z) / z - 1
    second = first / z - 0.5
    return first / np.expm1(z), 2 * second / np.expm1(z)


SOLVERS: dict[str, Solver] = {"unipc": UniPC(), "euler": Euler()}

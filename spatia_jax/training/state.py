"""What a training run is at a given step: parameters, their moving average, the optimizer's memory, the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from spatia_jax.errors import InputError

Params = Any  # a pytree of arrays


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay.

    The paper states AdamW, batch 64, learning rate 1e-5 (stage 1) and 1e-4 (stage 2); betas, decay and warm-up are
    not in it (spec 1.7), so they are settings here.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 50
    final_fraction: float = 0.05  # the learning rate at the last step, as a fraction of the peak
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0
    ema_decay: float = 0.998

    def __post_init__(self):
        if not 0 < self.learning_rate < 1:
            raise InputError(f"optimizer.learning_rate is {self.learning_rate}; it must lie between 0 and 1")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"optimizer.ema_decay is {self.ema_decay}; it must lie in [0, 1)")

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of `steps` steps."""
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.learning_rate,
            warmup_steps=min(self.warmup_steps, max(1, steps // 10)),
            decay_steps=max(steps, 2),
            end_value=self.learning_rate * self.final_fraction,
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                schedule,
                b1=self.beta1,
                b2=self.beta2,
                weight_decay=self.weight_decay,
                mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),  # not on biases and gains
            ),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A training run between two steps.

    Attributes:
        step: int32 scalar, steps done.
        params, ema: pytrees of the same structure; `ema` is what is evaluated and shipped.
        opt_state: the optimizer's own pytree.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: Any

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
        return cls(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    def apply(self, gradients: Params, optimizer: optax.GradientTransformation, ema_decay: float) -> TrainState:
        """The state after one optimizer step. Early on the average forgets faster, so that it leaves the start."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        decay = jnp.minimum(ema_decay, (1.0 + self.step) / (10.0 + self.step))
        ema = jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), self.ema, params)
        return TrainState(self.step + 1, params, ema, opt_state)

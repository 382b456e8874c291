"""How a network is trained: what a config says of one run of `fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import optax

from spatia_jax.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay.

    The paper states AdamW, batch 64, learning rate 1e-5 (stage 1) and 1e-4 (stage 2); betas, decay and warm-up are
    not in it (spec 1.7), so they are settings here.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 50
    final_fraction: float = 0.05  # the learning rate at the last step, as a fraction of the peak; 1: it stays
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
                mask=_is_matrix,
            ),
        )


def _is_matrix(params: Any) -> Any:
    """Which parameters decay: not biases, gains and tables of modulation, which are matrices only by being stacked."""
    names = ("kernel", "embedding", "down", "up")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in names, params
    )


@dataclass(frozen=True)
class FitConfig:
    """How long and how to train.

    Attributes:
        steps, batch_size, seed: of the run; the batch is that of all hosts together.
        accumulate: the batch goes through the networks in so many parts, one after another, and makes one step.
        train_only: paths of the parameters that are trained ("transformer.control", "lora"); empty: all of them. The
            others are frozen: they have no optimizer state, no average, and are not in the checkpoints.
        frozen_dtype: what the kernels of frozen parameters are held in.
        readers: threads that read rows; their order does not depend on it.
        log_every, save_every: steps.
        keep_last: so many checkpoints are kept, and the one with the smallest held-out loss.
        evaluate_every: steps between held-out losses, which are also taken at each save; 0: never.
        evaluate_batches: of held-out examples, the same ones each time.
        sample_every: steps between sample videos; 0: none.
        profile_steps: the profiler's window, from the first step of these up to the second; (0, 0): none.
    """

    steps: int = 1000
    batch_size: int = 8
    seed: int = 0
    accumulate: int = 1
    train_only: tuple[str, ...] = ()
    frozen_dtype: str = "float32"
    readers: int = 1
    log_every: int = 20
    save_every: int = 200
    keep_last: int = 2
    evaluate_every: int = 0
    evaluate_batches: int = 4
    sample_every: int = 0
    profile_steps: tuple[int, int] = (0, 0)
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        counts = ("steps", "batch_size", "accumulate", "readers", "log_every", "save_every", "keep_last")
        for name in (*counts, "evaluate_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"fit.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.accumulate:
            raise InputError(f"fit.batch_size is {self.batch_size}; fit.accumulate ({self.accumulate}) must divide it")
        if self.frozen_dtype not in ("float32", "bfloat16"):
            raise InputError(f"fit.frozen_dtype is {self.frozen_dtype!r}; it must be float32 or bfloat16")

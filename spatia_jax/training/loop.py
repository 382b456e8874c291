"""The training loop, in the order in which things happen; it knows nothing of what it trains.

Everything random is `fold_in(key, step)` and batch number `step` is a function of `step` alone, so the step is the
whole data and PRNG position: a resumed run continues with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import Array
from tensorboardX import SummaryWriter

from spatia_jax.errors import InputError
from spatia_jax.parallel import data_mesh, replicated, split_batch
from spatia_jax.training.state import OptimizerConfig, Params, TrainState


class Objective(Protocol):
    """What is trained: how parameters start, and what is small when they are good."""

    def init(self, key: Array) -> Params: ...

    def loss(self, params: Params, batch: Any, key: Array) -> tuple[Array, Mapping[str, Array]]: ...


@dataclass(frozen=True)
class FitConfig:
    """How long and how to train."""

    steps: int = 1000
    batch_size: int = 8
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"fit.{name} is {getattr(self, name)}; it must be at least 1")


def make_train_step(objective: Objective, config: FitConfig, mesh: Mesh) -> Callable:
    """`train_step(state, batch, key) -> state, metrics`: pure, jitted, the old state's memory is reused.

    The batch is split over `mesh`, the state is on every device; XLA adds the sum of the gradients.
    """
    optimizer = config.optimizer.build(config.steps)

    def train_step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
        step_key = jax.random.fold_in(key, state.step)
        (loss, metrics), gradients = jax.value_and_grad(objective.loss, has_aux=True)(state.params, batch, step_key)
        norm = jax.numpy.sqrt(sum(jax.numpy.vdot(g, g).real for g in jax.tree.leaves(gradients)))
        state = state.apply(gradients, optimizer, config.optimizer.ema_decay)
        return state, {"loss": loss, "gradient_norm": norm, **metrics}

    everywhere = replicated(mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(everywhere, everywhere))


def initial_state(objective: Objective, config: FitConfig, start: Params | None = None) -> TrainState:
    """The state at step 0, from scratch or from given parameters."""
    params = jax.jit(objective.init)(jax.random.key(config.seed)) if start is None else start
    return TrainState.create(params, config.optimizer.build(config.steps))


def fit(
    objective: Objective,
    config: FitConfig,
    batches: grain.MapDataset,
    directory: Path,
    *,
    start: Params | None = None,
    say: Callable[[str], None] = print,
) -> TrainState:
    """Trains to `config.steps` steps, resuming from the last complete checkpoint in `directory` if there is one.

    SIGTERM (a machine that is taken back, a queue's time limit) ends the step at hand, saves, and exits with status
    143; the same call goes on from there. A loss that is not finite is never saved.

    Args:
        objective: what to train.
        config: how.
        batches: endless; element i is the batch of step i.
        directory: gets `checkpoints/`, `metrics.jsonl` and TensorBoard files.
        start: parameters to start from instead of `objective.init`.
        say: where progress lines go.

    Returns:
        The state after the last step.

    Raises:
        FloatingPointError: loss or gradient are not finite; names the last checkpoint.
        SystemExit: after SIGTERM.
    """
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager((directory / "checkpoints").absolute(), options=options) as manager:
        mesh = data_mesh(config.batch_size)
        state = jax.device_put(_restore_or_start(manager, objective, config, start, say), replicated(mesh))
        train_step = make_train_step(objective, config, mesh)
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        first = int(state.step)
        if first >= config.steps:
            return state
        iterator = iter(batches[first:].to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
        with _Log(directory, config, say, manager.latest_step) as log, _StopSignal() as stop:
            for step in range(first, config.steps):
                batch = split_batch(log.waited_for(iterator), mesh)
                state, metrics = train_step(state, batch, key)
                log(step, metrics)
                if (step + 1) % config.save_every == 0 or step + 1 == config.steps or stop.asked:
                    log.check_finite()
                    manager.save(step + 1, args=ocp.args.StandardSave(state))
                if stop.asked:
                    manager.wait_until_finished()
                    say(f"SIGTERM: saved step {step + 1} in {directory}; the same command goes on from there")
                    raise SystemExit(128 + signal.SIGTERM)
        manager.wait_until_finished()
    return state


def _restore_or_start(manager, objective, config, start, say) -> TrainState:
    latest = manager.latest_step()
    if latest is None:
        return initial_state(objective, config, start)
    say(f"resuming from step {latest}")
    abstract = jax.eval_shape(lambda: initial_state(objective, config, start))
    return manager.restore(latest, args=ocp.args.StandardRestore(abstract))


class _StopSignal:
    """Notices SIGTERM instead of dying of it; outside the main thread, where Python allows no handler, it does not."""

    def __init__(self):
        self.asked, self.before = False, None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_):
        self.asked = True

    def __exit__(self, *_):
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)


class _Log:
    """Console, JSON lines and TensorBoard; metrics stay on the device until they are due."""

    def __init__(self, directory: Path, config: FitConfig, say: Callable[[str], None], last_saved: Callable):
        self.directory, self.config, self.say, self.last_saved = directory, config, say, last_saved
        self.file = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self.board = SummaryWriter(str(directory / "tensorboard"))
        self.pending: list[dict] = []
        self.since, self.waited = time.perf_counter(), 0.0
        self.unchecked: list[tuple[int, Array, Array]] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.board.close()

    def waited_for(self, iterator: Iterator) -> Any:
        """The next batch; the time that it takes to come is counted."""
        began = time.perf_counter()
        batch = next(iterator)
        self.waited += time.perf_counter() - began
        return batch

    def check_finite(self) -> None:
        """Raises FloatingPointError if a loss, or a gradient, since the last check is not finite."""
        for step, loss, norm in self.unchecked:
            if not np.isfinite(float(loss) + float(norm)):
                last = self.last_saved()
                kept = "there is no checkpoint" if last is None else f"step {last} is the last good checkpoint"
                raise FloatingPointError(
                    f"step {step + 1}: loss {float(loss)}, gradient {float(norm)}; {kept} in {self.directory}"
                )
        self.unchecked = []

    def __call__(self, step: int, metrics: dict[str, Array]) -> None:
        self.pending.append(metrics)
        self.unchecked.append((step, metrics["loss"], metrics["gradient_norm"]))
        if (step + 1) % self.config.log_every and step + 1 != self.config.steps:
            return
        self.check_finite()
        means = {name: float(np.mean([float(m[name]) for m in self.pending if name in m])) for name in metrics}
        seconds = (time.perf_counter() - self.since) / len(self.pending)
        waited = self.waited / len(self.pending)
        self.since, self.waited, self.pending = time.perf_counter(), 0.0, []
        speed = {"seconds_per_step": seconds, "data_wait_seconds": waited}
        self.file.write(json.dumps({"step": step + 1, **speed, **means}) + "\n")
        self.file.flush()
        for name, value in {**means, **speed}.items():
            self.board.add_scalar(name, value, step + 1)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        examples = self.config.batch_size / seconds
        self.say(
            f"step {step + 1}/{self.config.steps}  {shown}  {seconds:.2f} s/step  {examples:.3g} examples/s  "
            f"data {waited:.2f} s"
        )

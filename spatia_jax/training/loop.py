"""The training loop, in the order in which things happen; it knows nothing of what it trains.

Everything random is `fold_in(key, step)` and batch number `step` is a function of `step` alone, so the step is the
whole data and PRNG position: a resumed run continues with the same bits as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from spatia_jax.parallel import MeshConfig, state_shardings
from spatia_jax.training.batches import Batches, part_of_this_host, to_devices, training_mesh
from spatia_jax.training.checkpoints import Checkpoints
from spatia_jax.training.log import Log, StepCost
from spatia_jax.training.options import FitConfig
from spatia_jax.training.state import Params, TrainState
from spatia_jax.training.step import Objective, compile_train_step, initial_state
from spatia_jax.training.stop import STATUS, StopSignal

_TRAIN, _HELD_OUT = 1, 2  # purposes folded into a run's key


@dataclass(frozen=True)
class Watch:
    """What is looked at beside the loss.

    Attributes:
        validation: held-out batches; the first `config.evaluate_batches` are used, with the same noise each time.
        sample: all networks to a video ([t, h, w, 3] uint8); fps: of it.
        cost: of a step, for tokens a second and MFU.
    """

    validation: Batches | None = None
    sample: Callable[[Params], np.ndarray] | None = None
    fps: int = 12
    cost: StepCost | None = None


def fit(
    objective: Objective,
    config: FitConfig,
    batches: Batches,
    directory: Path,
    *,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
    start: Params | None = None,
    frozen: Params | None = None,
    watch: Watch = Watch(),
    say: Callable[[str], None] = print,
) -> TrainState:
    """Trains to `config.steps` steps, resuming from the last complete checkpoint in `directory` if there is one.

    SIGTERM (a machine that is taken back, a queue's time limit) ends the step at hand, saves, and exits with status
    143; the same call goes on from there. A loss that is not finite is never saved.

    Args:
        objective: what to train.
        config: how.
        batches: endless; batch i is that of step i.
        directory: gets `checkpoints/`, `metrics.jsonl`, TensorBoard files, samples and profiles.
        mesh: of devices; see `batches.training_mesh`.
        start: networks to start from instead of `objective.init`.
        frozen: further networks that the objective uses.
        watch: what else to look at.
        say: where progress lines go.

    Returns:
        The state after the last step.

    Raises:
        FloatingPointError: loss or gradient are not finite; names the last checkpoint.
        SystemExit: after SIGTERM.
    """
    say = say if jax.process_index() == 0 else _silence
    directory.mkdir(parents=True, exist_ok=True)
    devices = training_mesh(mesh, config.batch_size // config.accumulate)
    keys = [jax.random.fold_in(jax.random.key(config.seed), purpose) for purpose in (_TRAIN, _HELD_OUT)]
    with Checkpoints(directory / "checkpoints", config, say) as checkpoints, jax.set_mesh(devices):
        state = initial_state(objective, config, devices, start, frozen)
        shardings = state_shardings(state, devices)
        if (latest := checkpoints.latest) is not None:
            say(f"resuming from step {latest}")
            state = checkpoints.restore(latest, state, shardings)
        if state.step >= config.steps:
            return state
        train_step = compile_train_step(objective, config, shardings, devices)
        held_out = _held_out_loss(objective, config, watch.validation, devices, keys[1])
        rows = _read(batches, int(state.step), config, devices)
        log = Log(directory, config, say, lambda: checkpoints.latest, watch.cost)
        with log, StopSignal() as stop:
            for step in range(int(state.step), config.steps):
                log.profile(step)
                batch = to_devices(log.waited_for(rows), devices)
                state, metrics = train_step(state, batch, keys[0])
                log(step, metrics)
                stopping = stop.asked(step)
                with log.paused():
                    _look_and_save(state, step + 1, config, checkpoints, log, held_out, watch, stopping)
                if stopping:
                    checkpoints.wait()
                    say(f"SIGTERM: saved step {step + 1} in {directory}; the same command goes on from there")
                    raise SystemExit(STATUS)
        checkpoints.wait()
    return state


def _read(batches: Batches, first: int, config: FitConfig, devices: Mesh) -> Iterator:
    """This host's rows of every batch from number `first` on."""
    rows = batches.part(part_of_this_host(devices, config.batch_size))
    reading = grain.ReadOptions(num_threads=config.readers, prefetch_buffer_size=max(4, 2 * config.readers))
    return iter(rows[first:].to_iter_dataset(reading))


def _look_and_save(
    state: TrainState,
    done: int,
    config: FitConfig,
    checkpoints: Checkpoints,
    log: Log,
    held_out: Callable[[TrainState], float] | None,
    watch: Watch,
    stopping: bool,
) -> None:
    """What is due after `done` steps: held-out loss, checkpoint, sample video."""
    saving = _due(done, config.save_every) or done == config.steps or stopping
    loss = None
    if held_out and (saving or _due(done, config.evaluate_every)):
        log.held_out(done, loss := held_out(state))
    if saving:
        log.check_finite()
        checkpoints.save(state, done, loss)
    if watch.sample and _due(done, config.sample_every):
        log.video(done, watch.sample(state.evaluated), watch.fps)


def _held_out_loss(
    objective: Objective, config: FitConfig, validation: Batches | None, devices: Mesh, key: Array
) -> Callable[[TrainState], float] | None:
    """The mean loss of the average parameters over held-out batches, the same ones with the same noise each time."""
    if validation is None or not config.evaluate_every:
        return None
    keys = jax.random.split(key, validation.size)
    rows = validation.part(part_of_this_host(devices, validation.size))
    fixed = [to_devices(rows[i], devices) for i in range(config.evaluate_batches)]
    loss = jax.jit(lambda state, batch: objective.loss(state.evaluated, batch, keys)[0])
    return lambda state: float(np.mean([float(loss(state, batch)) for batch in fixed]))


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _silence(line: str) -> None:
    pass

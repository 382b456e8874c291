"""What a run says while it runs: a console line, JSON lines, TensorBoard, sample videos, the profiler's window."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, UInt8
from tensorboardX import SummaryWriter

from spatia_jax.io.video import write_video
from spatia_jax.training.options import FitConfig


@dataclass(frozen=True)
class StepCost:
    """What a step is worth: tokens that go through the transformer, model FLOPs (forward and backward, nothing counted
    twice for rematerialisation), and the FLOP/s that one device can do at best (None: not known, as on CPU)."""

    tokens: float
    flops: float
    peak_flops: float | None

    def speed(self, seconds: float) -> dict[str, float]:
        """Numbers for a step of so many seconds."""
        found = {"tokens_per_second": self.tokens / seconds}
        if self.peak_flops:
            found["mfu"] = self.flops / seconds / (self.peak_flops * jax.device_count())
        return found


class Log:
    """Metrics stay on the device until they are due. Only process 0 says and writes anything."""

    def __init__(
        self,
        directory: Path,
        config: FitConfig,
        say: Callable[[str], None],
        last_saved: Callable[[], int | None],
        cost: StepCost | None = None,
    ):
        self.directory, self.config, self.say, self.last_saved, self.cost = directory, config, say, last_saved, cost
        self.pending: list[dict[str, Array]] = []
        self.unchecked: list[tuple[int, Array, Array]] = []
        self.since, self.waited, self.profiling = time.perf_counter(), 0.0, False
        self.file = self.board = None
        if jax.process_index() == 0:
            self.file = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
            self.board = SummaryWriter(str(directory / "tensorboard"))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.profiling:
            jax.profiler.stop_trace()
        if self.file is not None and self.board is not None:
            self.file.close()
            self.board.close()

    def waited_for(self, iterator: Iterator) -> Any:
        """The next batch; the time that it takes to come is counted."""
        began = time.perf_counter()
        batch = next(iterator)
        self.waited += time.perf_counter() - began
        return batch

    def profile(self, step: int) -> None:
        """Opens and closes the profiler's window; call it before a step."""
        first, end = self.config.profile_steps
        if first <= step < end and not self.profiling:
            jax.profiler.start_trace(str(self.directory / "profile"))
            self.profiling = True
        if step >= end and self.profiling:
            jax.block_until_ready(self.pending)
            jax.profiler.stop_trace()
            self.profiling = False
            self.say(f"profile of steps {first} to {end} in {self.directory / 'profile'}")

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
        """Notes a step, and writes the means since the last line when one is due."""
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
        rates = self.cost.speed(seconds) if self.cost else {}
        self.write(step + 1, {**speed, **rates, **means})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        work = f"{rates['tokens_per_second']:.3g} tokens/s  " if rates else ""
        work += f"MFU {100 * rates['mfu']:.1f} %  " if "mfu" in rates else ""
        self.say(
            f"step {step + 1}/{self.config.steps}  {shown}  {seconds:.2f} s/step  "
            f"{self.config.batch_size / seconds:.3g} examples/s  {work}data {waited:.2f} s"
        )

    def held_out(self, step: int, loss: float) -> None:
        """Notes a held-out loss after `step` steps; the time that it took is no step's."""
        self.write(step, {"held_out_loss": loss})
        self.say(f"step {step}/{self.config.steps}  held-out loss {loss:.4g}")

    def video(self, step: int, frames: UInt8[np.ndarray, "t h w 3"], fps: int) -> None:
        """A sample video after `step` steps: an mp4, and a strip of four of its frames in TensorBoard."""
        if self.board is None:
            return
        path = self.directory / "samples" / f"step-{step:06d}.mp4"
        write_video(path, frames, fps)
        strip = np.concatenate(list(frames[:: max(1, len(frames) // 4)][:4]), axis=1)
        self.board.add_image("sample", strip, step, dataformats="HWC")
        self.say(f"step {step}/{self.config.steps}  sample in {path}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is left out of the seconds of steps."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def write(self, step: int, values: dict[str, float]) -> None:
        """One JSON line and its TensorBoard scalars."""
        if self.file is None or self.board is None:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

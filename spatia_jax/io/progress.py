"""Where a rollout is: two bars (clips, denoising steps) on a terminal, one line a clip elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RolloutProgress:
    """Reports the clips of a rollout, and the stages and denoising steps of each; use it as a context manager.

    with RolloutProgress(num_clips=4, num_steps=12) as progress:
        for index in range(4):
            progress.start_clip(index, prompt)
            progress.stage("denoise")
            progress.step(12)
            progress.finish_clip(num_points)
    """

    def __init__(self, num_clips: int, num_steps: int, *, first_clip: int = 0, console: Console | None = None):
        self._console = console or Console()
        self._num_clips, self._num_steps = num_clips, num_steps
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._clips = self._bars.add_task("clips", total=num_clips, completed=first_clip)
        self._steps = self._bars.add_task("steps", total=num_steps)
        self._index = first_clip
        self._prompt = ""
        self._started = time.perf_counter()

    def __enter__(self) -> RolloutProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bars.stop()

    def start_clip(self, index: int, prompt: str) -> None:
        self._index, self._prompt, self._started = index, prompt, time.perf_counter()
        self._bars.reset(self._steps, total=self._num_steps, description="steps")

    def stage(self, name: str) -> None:
        """Names what runs now, beside the bar of the steps."""
        self._bars.update(self._steps, description=name)

    def step(self, completed: int) -> None:
        """`completed` denoising steps of this clip are done."""
        self._bars.update(self._steps, completed=completed)

    def finish_clip(self, num_points: int) -> None:
        """One line stays on the terminal (or in the log) for every clip."""
        self._bars.update(self._clips, completed=self._index + 1)
        seconds = time.perf_counter() - self._started
        prompt = self._prompt if len(self._prompt) <= 60 else self._prompt[:57] + "..."
        self._console.print(
            f"clip {self._index + 1}/{self._num_clips}  {seconds:6.1f} s  {num_points:,} points  {prompt}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

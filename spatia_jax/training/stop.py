"""Being told to stop: SIGTERM, from a queue's time limit or a machine that is taken back."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

STATUS = 128 + signal.SIGTERM


class StopSignal:
    """Notices SIGTERM instead of dying of it; outside the main thread, where Python allows no handler, it does not.

    With several hosts JAX's own service notices, and names a step that all hosts reach: they stop at the same one.
    """

    def __init__(self) -> None:
        self.noticed = False
        self.before: Any = None

    def __enter__(self) -> StopSignal:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def _notice(self, *_: Any) -> None:
        self.noticed = True

    def __exit__(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def asked(self, step: int) -> bool:
        """Whether to save and stop after this step; the same answer on all hosts."""
        return self.noticed if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

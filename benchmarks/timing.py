"""How the benchmarks measure: medians of interleaved calls, so that a busy machine slows all sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def medians(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each function over `repeats` rounds in which every function is called once, in order.

    Each is called once before, unmeasured, to compile and to warm up. JAX arrays in a result are waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}

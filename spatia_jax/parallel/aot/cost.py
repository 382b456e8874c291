"""How long a compiled program takes on its slice, instruction after instruction, and which collectives it calls.

A computation is walked through in its scheduled order, with three clocks: the cores', the interconnect's and that of
copies between HBM and VMEM.

- An instruction takes the cycles that XLA estimated for it; bodies of loops count as often as they run.
- Attention kernels (Pallas), of which XLA knows nothing, take their FLOPs at `PALLAS_EFFICIENCY` of the chip's peak.
  Other kernels of that kind are not priced, but named.
- A collective takes its bytes over the links of its group (`wire_seconds`). If it is asynchronous, the cores go on, and
  wait only where its result is needed and not there yet. Collectives, and copies, queue up one behind the other.
- Of a conditional's branches the dearest counts.

Latencies, the start of the program, hosts and the network between slices are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spatia_jax.parallel.aot.chips import Slice
from spatia_jax.parallel.aot.hlo import Instruction, Module, arrays, group, nbytes

PALLAS_EFFICIENCY = 0.6  # of the peak, for attention kernels: an assumption, no TPU has confirmed it
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# Products of l x m x d in splash attention's kernels, by name: logits and their use forwards; backwards both again, and
# one for each gradient that the kernel returns.
_ATTENTION_PRODUCTS = {"fwd": 2, "dkv": 2, "dq": 2}


@dataclass(frozen=True)
class Cost:
    """What running something once costs a chip.

    Attributes:
        seconds: all in all.
        compute: of it, XLA's cycles; kernels: attention kernels.
        exposed: of it, cores waiting for collectives; copies: waiting for copies from HBM.
        counts, bytes: of collectives, by kind; bytes are those of the result (of a reduce-scatter: of its input).
        unpriced: kernels without a price, what XLA has no estimate of, and loops of unknown length (counted once), by
            name.
    """

    seconds: float = 0.0
    compute: float = 0.0
    kernels: float = 0.0
    exposed: float = 0.0
    copies: float = 0.0
    counts: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)
    unpriced: Counter = field(default_factory=Counter)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    def times(self, count: int) -> Cost:
        """The same `count` times."""
        scaled: dict[str, Any] = {}
        for name, value in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self)):
            scaled[name] = Counter({k: n * count for k, n in value.items()}) if isinstance(value, Counter) else (
                value * count)  # fmt: skip
        return Cost(**scaled)


def estimate(module: Module, place: Slice) -> Cost:
    """The cost of one run of a program on each chip of a slice.

    Args:
        module: compiled for all of the slice's chips, in the order of `place.devices`.
    """
    return _Pricer(module, place).cost(module.entry)


def wire_seconds(kind: str, bytes: int, devices: tuple[int, ...], place: Slice) -> float:
    """How long a collective over a group of chips keeps their links busy.

    Along every axis of the slice in which the group's chips differ, data goes both ways round if the axis is a ring,
    else one way; axes work at the same time. A gather moves (n - 1) / n of its result through every chip, a sum twice
    that; of an all-to-all along an axis of n chips, n / 4 as much crosses the busiest link.
    """
    chip, coords = place.chip, np.array([place.devices[i].coords for i in devices])
    lengths = [(len(set(line)), size) for line, size in zip(coords.T.tolist(), place.shape, strict=True)]
    spans = [(n, 2 if n == size and n % chip.ring == 0 else 1) for n, size in lengths if n > 1]
    if not spans:
        return 0.0
    bandwidth, count = chip.link_bandwidth * sum(ways for _, ways in spans), len(devices)
    share = bytes * (count - 1) / count
    match kind:
        case "collective-permute":
            return bytes / chip.link_bandwidth
        case "all-to-all" | "ragged-all-to-all":
            return share * max(1.0, max(n for n, _ in spans) / 4) / bandwidth
        case "all-reduce":
            return 2 * share / bandwidth
    return share / bandwidth


class _Pricer:
    """Prices computations; each once."""

    def __init__(self, module: Module, place: Slice):
        self.module, self.place = module, place
        self.known: dict[str, Cost] = {}

    def cost(self, name: str) -> Cost:
        if name not in self.known:
            self.known[name] = self._walk(name)
        return self.known[name]

    def _walk(self, name: str) -> Cost:
        clock = _Clock()
        for instruction in self.module.computations[name]:
            opcode = instruction.opcode
            if opcode in ("while", "conditional", "call"):
                clock.add(self._nested(instruction, name))
            elif (found := self._collective(instruction)) is not None:
                self._communicate(clock, instruction, *found)
            elif opcode in ("copy-start", "slice-start"):
                seconds = nbytes(instruction.arrays[:1]) / self.place.chip.hbm_bandwidth
                clock.start_copy(instruction.name, seconds)
            elif opcode.endswith("-done"):
                clock.finish(instruction.operands[0])
            elif opcode == "custom-call":
                clock.add(self._kernel(instruction))
            if instruction.cycles:
                seconds = instruction.cycles / self.place.chip.clock
                clock.add(Cost(seconds, compute=seconds))
            elif instruction.is_unknown:
                clock.add(Cost(unpriced=Counter({instruction.name.rstrip("0123456789."): 1})))
        return clock.total()

    def _nested(self, instruction: Instruction, inside: str) -> Cost:
        if instruction.opcode == "conditional":
            return max((self.cost(branch) for branch in instruction.branches), key=lambda cost: cost.seconds)
        if instruction.opcode == "call":
            return self.cost(instruction.called("to_apply") or "")
        trips = self.module.trips(instruction, inside)
        once = self.cost(instruction.called("body") or "") + self.cost(instruction.called("condition") or "")
        if trips is None:
            return once + Cost(unpriced=Counter({"a loop of unknown length": 1}))
        return once.times(trips)

    def _collective(self, instruction: Instruction) -> tuple[str, Instruction, str] | None:
        """(kind, the collective itself, "start" | "goes on" | "done" | "waits") if the instruction is or has one."""
        kind, _, phase = instruction.opcode.rpartition("-")
        if phase in ("start", "done") and kind in KINDS:
            return kind, instruction, phase
        if instruction.opcode in KINDS:
            return instruction.opcode, instruction, "waits"
        called = instruction.called("calls")
        if instruction.opcode not in ("fusion", "async-start") or called is None:
            return None
        body = self.module.computations[called]
        inner = next((i for i in body if i.opcode in KINDS), None)
        if inner is None:
            return None
        kind = "reduce-scatter" if "all-reduce-scatter" in called else inner.opcode
        text = " ".join(i.attributes for i in body if i.opcode == "custom-call")
        if "AsyncCollectiveStart" in text or instruction.opcode == "async-start":
            return kind, inner, "start"
        if "AsyncCollectiveDone" in text:
            return kind, inner, "done"
        return kind, inner, "goes on" if called.startswith("async_collective_fusion") else "waits"

    def _communicate(self, clock: _Clock, instruction: Instruction, kind: str, inner: Instruction, phase: str) -> None:
        key = f"channel {inner.channel}" if inner.channel is not None and instruction is not inner else instruction.name
        if phase == "done":
            clock.finish(key if key.startswith("channel") else instruction.operands[0])
        elif phase != "goes on":
            sizes = [nbytes([array]) for array in inner.arrays if array[0] != "u32"]
            # The type of a start holds operands and results: what is gathered is the largest of both.
            bytes = max(sizes) if phase == "start" and inner.opcode == instruction.opcode[:-6] else sum(sizes)
            devices = group(inner.attributes, len(self.place.devices))
            if inner.opcode == "reduce-scatter":
                bytes *= len(devices)
            seconds = wire_seconds(kind, bytes, devices, self.place)
            clock.send(key, seconds, waits=phase == "waits")
            clock.tally(Cost(counts=Counter({kind: 1}), bytes=Counter({kind: bytes})))

    def _kernel(self, instruction: Instruction) -> Cost:
        if 'custom_call_target="tpu_custom_call"' not in instruction.attributes:
            return Cost()
        if (flops := attention_flops(instruction)) is None:
            return Cost(unpriced=Counter({instruction.name.split(".")[0]: 1}))
        seconds = flops / (PALLAS_EFFICIENCY * self.place.chip.peak_flops)
        return Cost(seconds, kernels=seconds)


def attention_flops(kernel: Instruction) -> float | None:
    """Operations of an attention kernel, from its name and shapes; None if it is none.

    Its operands are not in its line, but their layouts are: of the [heads, length, d] among them the first is the
    queries, the second the keys.
    """
    part = next((part for part in _ATTENTION_PRODUCTS if f"mha_{part}" in kernel.name), None)
    given = kernel.attributes.partition("operand_layout_constraints={")[2].partition("}}")[0]
    matrices = [shape for dtype, shape in arrays(given) if dtype in ("bf16", "f32") and len(shape) >= 3]
    if part is None or len(matrices) < 2:
        return None
    (*heads, length, width), (*_, keys, _) = matrices[:2]
    returned = [s for _, s in kernel.arrays if len(s) >= 3 and s[-2] in (length, keys) and s[-1] == width]
    products = _ATTENTION_PRODUCTS[part] + (len(returned) if part != "fwd" else 0)
    return 2.0 * products * math.prod(heads) * length * keys * width


class _Clock:
    """The clocks of one computation, and what has been counted in it."""

    def __init__(self) -> None:
        self.now = self.link = self.memory = 0.0
        self.pending: dict[str, tuple[float, str]] = {}
        self.sum = Cost()

    def add(self, cost: Cost) -> None:
        self.now += cost.seconds
        self.sum += cost

    def tally(self, cost: Cost) -> None:
        self.sum += cost

    def send(self, key: str, seconds: float, *, waits: bool) -> None:
        self.link = max(self.now, self.link) + seconds
        self.pending[key] = self.link, "exposed"
        if waits:
            self.finish(key)

    def start_copy(self, key: str, seconds: float) -> None:
        self.memory = max(self.now, self.memory) + seconds
        self.pending[key] = self.memory, "copies"

    def finish(self, key: str) -> None:
        """Waits for what was started as `key`; nothing if that was elsewhere."""
        ready, what = self.pending.pop(key, (0.0, "exposed"))
        self._wait(ready, what)

    def _wait(self, until: float, what: str) -> None:
        seconds = max(until - self.now, 0.0)
        self.add(Cost(seconds, exposed=seconds) if what == "exposed" else Cost(seconds, copies=seconds))

    def total(self) -> Cost:
        """A body cannot start again before its transfers are through."""
        self._wait(self.link, "exposed")
        self._wait(self.memory, "copies")
        return self.sum

"""Reads the text of a compiled program: computations, their instructions in the order in which they run, loops, groups.

Only what the cost model asks for is understood. The text is XLA's own (`compiled.as_text()`), scheduled.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

import numpy as np

_NAME = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b(pred|bf16|[subf][0-9]+\w*|c64|c128)\[([\d,]*)\]")
_CALLS = re.compile(r"\b(calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = 2**63 - 1
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BITS = {"pred": 8, "c64": 64, "c128": 128}


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def cycles(self) -> int | None:
        """How long XLA thinks that it takes; None where it does not say."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found and not self.is_unknown else None

    @property
    def is_unknown(self) -> bool:
        """XLA says that it does not know how long it takes: what the sparse cores do, e.g. scattering."""
        found = _CYCLES.search(self.attributes)
        return found is not None and int(found[1]) == _UNKNOWN_CYCLES

    @property
    def channel(self) -> int | None:
        """What tells one collective from another, also where parts of it stand in several computations."""
        found = _CHANNEL.search(self.attributes)
        return int(found[1]) if found else None

    def called(self, role: str) -> str | None:
        """The computation that is called as "calls", "body", "condition", ..."""
        return next((name for kind, name in _CALLS.findall(self.attributes) if kind == role), None)

    @property
    def branches(self) -> tuple[str, ...]:
        """Of a conditional."""
        if found := _BRANCHES.search(self.attributes):
            return tuple(name.strip(" %") for name in found[1].split(","))
        return tuple(n for kind, n in _CALLS.findall(self.attributes) if kind.endswith("_computation"))

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """(dtype, shape) of what it returns."""
        return arrays(self.type)


@dataclass(frozen=True)
class Module:
    """A program: its computations by name, each a list of instructions."""

    computations: dict[str, list[Instruction]]
    entry: str

    @functools.cached_property
    def _by_name(self) -> dict[str, dict[str, Instruction]]:
        return {name: {i.name: i for i in body} for name, body in self.computations.items()}

    def find(self, computation: str, name: str) -> Instruction | None:
        """The instruction called `name` in a computation."""
        return self._by_name[computation].get(name)

    def trips(self, loop: Instruction, inside: str) -> int | None:
        """How often the body of a `while` that stands in computation `inside` runs; None if that depends on data.

        Counting loops ask whether a counter, which starts at a constant (0 if it comes from outside), is below a
        constant, and nothing else.
        """
        name = loop.called("condition") or ""
        condition, test = self.computations[name], self.computations[name][-1]
        limits = [c for i in condition if (c := constant(i)) is not None]
        if len(limits) != 1 or test.opcode not in ("compare", "fusion"):
            return None
        asked = [self.find(name, operand) for operand in test.operands]
        counter = next((i for i in asked if i is not None and i.opcode == "get-tuple-element"), None)
        plain = all(i is not None and i.opcode in ("get-tuple-element", "constant") for i in asked)
        if not plain or counter is None or any(dims for _, dims in counter.arrays):
            return None
        if test.opcode == "compare" and "direction=LT" not in test.attributes:
            return None
        index = re.search(r"index=(\d+)", counter.attributes) if counter else None
        carried = self.find(inside, loop.operands[0])
        first = 0
        if index and carried and carried.opcode == "tuple":
            start = self.find(inside, carried.operands[int(index[1])])
            while start is not None and start.opcode in ("copy", "bitcast"):
                start = self.find(inside, start.operands[0])
            first = constant(start) or 0 if start is not None else 0
        return max(limits[0] - first, 0)


def arrays(type: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array in a type."""
    return [(dtype, tuple(map(int, dims.split(","))) if dims else ()) for dtype, dims in _ARRAY.findall(type)]


def nbytes(arrays: list[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of arrays, without padding."""
    return sum(math.prod(shape) * bits(dtype) // 8 for dtype, shape in arrays)


def bits(dtype: str) -> int:
    """Bits of one element."""
    return _BITS.get(dtype) or int(re.sub(r"^\D+", "", dtype).partition("e")[0])


def constant(instruction: Instruction) -> int | None:
    """The value of an integer constant."""
    if instruction.opcode == "constant" and instruction.operands and instruction.operands[0].lstrip("-").isdigit():
        return int(instruction.operands[0])
    return None


def parse(text: str) -> Module:
    """The program whose text is given."""
    computations: dict[str, list[Instruction]] = {}
    entry, body, pending = "", None, ""
    for line in text.splitlines():
        if body is None:
            if line.endswith("{") and (line.startswith(("%", "ENTRY"))):
                name = line.removeprefix("ENTRY ").lstrip("%").partition(" ")[0]
                entry = name if line.startswith("ENTRY") else entry
                body = computations.setdefault(name, [])
        elif line == "}" or line.startswith("}, execution_thread"):  # the latter of what sparse cores run
            _append(body, pending)
            body, pending = None, ""
        elif _NAME.match(line):
            _append(body, pending)
            pending = line
        else:
            pending += line  # an attribute with line breaks in it
    return Module(computations, entry)


def _append(body: list[Instruction], line: str) -> None:
    found = _NAME.match(line)
    if not found:
        return
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    operands = re.findall(r"%([\w.\-]+)", inside) or [inside.strip()]
    body.append(Instruction(found[1], type, opcode, tuple(operands), rest[close + 1 :]))


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def group(attributes: str, num_devices: int) -> tuple[int, ...]:
    """Numbers of the devices of the first group of a collective; all devices if it names none."""
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, found[1].split(",")))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+?),? ", attributes + " "):
        return tuple(_iota(found[3]).reshape(int(found[1]), int(found[2]))[0].tolist())
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", attributes):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        used = set(re.findall(r"'([^']+)'", found[3]))
        ids = _iota(found[2]) if found[2] else np.arange(math.prod(axes.values()))
        ids = ids.reshape(tuple(axes.values()))
        return tuple(ids[tuple(slice(None) if axis in used else 0 for axis in axes)].reshape(-1).tolist())
    return tuple(range(num_devices))


def _iota(text: str) -> np.ndarray:
    """0, 1, 2, ... in the order that "[2,4]T(1,0)" says: of that shape, its axes exchanged."""
    shape, _, order = text.partition("T")
    sizes = tuple(map(int, shape.strip("[]").split(",")))
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(tuple(map(int, order.strip("()").split(",")))) if order else ids

"""How many bytes a program needs beside its arguments, by counting which arrays are alive at the same time.

The count follows what XLA does to a jaxpr, in five rules:

1. Matrix products, convolutions, scatters, sorts and loops read arrays and write arrays. All else (arithmetic, casts,
   broadcasts, slices) is fused into what reads it and has no array of its own; sums and gathers write arrays of what is
   fused into them. ...
2. ... unless rule 1's operations read it, or it is read more than once and made from more than itself.
3. An array lives from the operation that writes it to the last one that reads it. Only scatters and updates of slices
   write over what they read, if they are its last reader.
4. A loop's carry lives outside of it, the arrays of its body count once, and of what it scans over it holds one slice.
5. An argument that is split over devices is gathered for the operation that reads it.

What this leaves out: padding by a TPU's tiles, workspaces of libraries, fragmentation. docs/plan.md compares with XLA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Read and write arrays (rule 1).
_STORING = {
    "dot_general", "conv_general_dilated", "sort", "top_k", "scan", "while", "cond", "custom_call", "pallas_call",
    "scatter", "scatter-add", "scatter-min", "scatter-max", "dynamic_update_slice", "cumsum", "cummax", "cumprod",
    "reduce_window", "reduce_window_max", "reduce_window_sum", "lu", "cholesky", "eigh", "svd", "triangular_solve",
}  # fmt: skip
# Write arrays of what is fused into them.
_REDUCING = {
    "gather", "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod", "argmax", "argmin",
}  # fmt: skip
_IN_PLACE = {"scatter", "scatter-add", "scatter-min", "scatter-max", "dynamic_update_slice"}
# Other names of the same bytes.
_RENAMING = {"reshape", "squeeze", "expand_dims", "stop_gradient", "copy", "optimization_barrier"}


@dataclass(frozen=True)
class Buffer:
    """An array that is alive at the peak: its size in bytes, and what it is, for people."""

    bytes: int
    name: str


@dataclass(frozen=True)
class Peak:
    """The most bytes that are alive at one time, and the arrays that make them up, largest first."""

    bytes: int
    buffers: tuple[Buffer, ...]


@dataclass(eq=False)
class _Value:
    """An array of the program; `node` wrote it, None for an argument that exists outside."""

    bytes: int
    aval: Any = None
    eqns: tuple[Any, ...] = ()  # that wrote it, and the calls that this one stands in
    node: _Node | None = None
    readers: int = 0
    stored: bool = False
    produced: bool = False


@dataclass(eq=False)
class _Node:
    """An operation; `inner` is what it needs beside the arrays that it reads and writes."""

    primitive: str
    reads: list[_Value]
    writes: list[_Value] = field(default_factory=list)
    inner: Peak = Peak(0, ())
    overwrites: Sequence[_Value] = ()  # may be written over if this is their last reader

    @property
    def stores(self) -> bool:
        return self.primitive in _STORING


def peak_bytes(
    function: Callable, *arguments: Any, platform: str, fused: Sequence[str] = (), sharded: Any = None
) -> Peak:
    """The most bytes that `function` has alive beside its arguments; results count.

    Args:
        arguments: pytrees of arrays or ShapeDtypeStructs; nothing is computed.
        platform: "cpu", "gpu" or "tpu", which decides between the branches of `lax.platform_dependent`.
        fused: names of jitted functions that run as one kernel: only what they read and write counts.
        sharded: for each leaf of the arguments, whether it is split over devices and has to be gathered; none if None.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    flags = [False] * len(jaxpr.jaxpr.invars) if sharded is None else jax.tree.leaves(sharded)
    platform = {"gpu": "cuda"}.get(platform, platform)
    return _Program(platform, tuple(fused)).peak(jaxpr, ["gathered" if flag else "outside" for flag in flags])


@dataclass
class _Program:
    """One jaxpr, flattened: calls are inlined, loops are nodes."""

    platform: str
    fused: tuple[str, ...]

    def peak(self, closed: ClosedJaxpr, kinds: Sequence[str], num_stored: int | None = None) -> Peak:
        """See `peak_bytes`.

        Args:
            kinds: of every argument: "outside" (counts nothing), "gathered" (its bytes count from its first reader to
                its last), or "carried" (counts, and may be written over).
            num_stored: so many of the results are arrays; the others are written into larger ones. All if None.
        """
        jaxpr = closed.jaxpr
        arguments = [_Value(_size(v.aval), v.aval) for v in jaxpr.invars]
        for value, kind in zip(arguments, kinds, strict=True):
            if kind == "gathered":
                value.node = _Node("gather shards", [], [value])
            value.produced = value.stored = kind != "gathered"
        nodes: list[_Node] = []
        results = self._flatten(jaxpr, arguments, nodes)
        carried = [v for v, kind in zip(arguments, kinds, strict=True) if kind == "carried"]
        num_stored = len(results) if num_stored is None else num_stored
        return _simulate(nodes, carried, results[:num_stored], results[num_stored:])

    def _flatten(
        self, jaxpr: Jaxpr, arguments: Sequence[_Value], nodes: list[_Node], calls: tuple[Any, ...] = ()
    ) -> list[_Value]:
        values: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        static: dict[Any, int] = {}
        for var in jaxpr.constvars:
            values[var] = _Value(0, stored=True, produced=True)

        def read(atom: Any) -> _Value:
            if isinstance(atom, Literal):
                return _Value(0, stored=True, produced=True)
            return values[atom]

        for eqn in jaxpr.eqns:
            reads, name = [read(atom) for atom in eqn.invars], eqn.primitive.name
            if name == "platform_index":
                static[eqn.outvars[0]] = self._branch(eqn.params["platforms"])
            if name == "cond" and eqn.invars[0] in static:
                branch = eqn.params["branches"][static[eqn.invars[0]]]
                outputs = self._flatten(_open(branch), reads[1:], nodes, (eqn, *calls))
            elif (call := _callee(eqn)) is not None and eqn.params.get("name") not in self.fused:
                outputs = self._flatten(_open(call), reads, nodes, (eqn, *calls))
            elif name in _RENAMING:
                outputs = reads
            else:
                outputs = [_Value(_size(v.aval), v.aval, (eqn, *calls)) for v in eqn.outvars]
                kind = "custom_call" if call is not None else name
                nodes.append(self._node(kind, eqn, reads, outputs))
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _branch(self, platforms: Sequence[Sequence[str] | None]) -> int:
        fitting = [i for i, names in enumerate(platforms) if names is None or self.platform in names]
        return fitting[0]

    def _node(self, primitive: str, eqn: Any, reads: list[_Value], writes: list[_Value]) -> _Node:
        node = _Node(primitive, reads, writes)
        params = eqn.params
        if primitive == "scan":
            consts, carry = params["num_consts"], params["num_carry"]
            scanned = len(reads) - consts - carry
            kinds = ["outside"] * consts + ["carried"] * carry + ["gathered"] * scanned
            node.inner = _less(self.peak(params["jaxpr"], kinds, carry), writes[:carry])
            node.overwrites = reads[consts : consts + carry]
        elif primitive == "while":
            consts = params["body_nconsts"]
            start = params["cond_nconsts"] + consts
            kinds = ["outside"] * consts + ["carried"] * len(writes)
            node.inner = _less(self.peak(params["body_jaxpr"], kinds), writes)
            node.overwrites = reads[start:]
        elif primitive == "cond":
            peaks = [self.peak(branch, ["outside"] * (len(reads) - 1)) for branch in params["branches"]]
            node.inner = _less(max(peaks, key=lambda peak: peak.bytes), writes)
        elif primitive in _IN_PLACE:
            node.overwrites = reads[:1]
        for write in writes:
            write.node = node
            write.stored = primitive in _STORING or primitive in _REDUCING
        return node


def _simulate(nodes: list[_Node], carried: list[_Value], results: list[_Value], written: list[_Value]) -> Peak:
    """Walks through the program and returns its peak; `results` are stored, `written` are only read at the end."""
    _choose_stored(nodes, results)
    steps = _steps(nodes, results, written)
    last = {value: i for i, (reads, _, _) in enumerate(steps) for value in reads}
    end = len(steps)
    last.update({value: end for value in results})
    alive: dict[_Value, int] = {value: value.bytes for value in carried}
    total = sum(alive.values())
    best, snapshot = total, list(alive)
    inner: tuple[Buffer, ...] = ()
    for i, (reads, writes, node) in enumerate(steps):
        free = [v for v in reads if last[v] <= i and v in alive]
        reusable = {id(v) for v in _roots(node.overwrites)} if node is not None else set()
        for write in writes:
            place = next((v for v in free if id(v) in reusable and v.bytes == write.bytes), None)
            if place is not None:
                free.remove(place)
                total -= alive.pop(place)
            alive[write] = write.bytes
            total += write.bytes
        extra = node.inner if node is not None else Peak(0, ())
        if total + extra.bytes > best:
            best, snapshot, inner = total + extra.bytes, list(alive), extra.buffers
        dead = [v for v in writes if last.get(v, -1) <= i]
        for value in (*free, *dead):
            total -= alive.pop(value, 0)
    buffers = [
        Buffer(v.bytes, f"{v.aval.str_short()} {_place(v.eqns)}") for v in snapshot if v.bytes and v not in carried
    ] + list(inner)
    return Peak(best, tuple(sorted(buffers, key=lambda b: -b.bytes)))


def _choose_stored(nodes: list[_Node], results: list[_Value]) -> None:
    """Rule 2: which of the fused values are arrays after all."""
    for node in nodes:
        for value in set(node.reads):
            value.readers += 1
    for value in results:
        value.stored = True
    for node in nodes:
        for value in node.reads if node.stores else ():
            if node.primitive != "scan" or value.node is None or value.node.primitive != "gather shards":
                _store(value, through_transpose=node.primitive == "dot_general")
    for node in nodes:
        for value in node.writes:
            if not value.stored and value.readers > 1:
                value.stored = sum(root.bytes for root in _roots(node.reads)) > 1.5 * value.bytes > 0


def _store(value: _Value, *, through_transpose: bool) -> None:
    while through_transpose and value.node is not None and value.node.primitive == "transpose" and not value.stored:
        value = value.node.reads[0]
    value.stored = True


def _roots(values: Iterable[_Value]) -> list[_Value]:
    """The arrays that fused values are computed from."""
    found: dict[_Value, None] = {}
    stack, seen = list(values), set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if value.stored:
            found[value] = None
        elif value.node is not None:
            stack.extend(value.node.reads)
    return list(found)


def _steps(
    nodes: list[_Node], results: list[_Value], written: list[_Value]
) -> list[tuple[list[_Value], list[_Value], _Node | None]]:
    """(arrays read, arrays written, operation) in order; fused values are computed when they are first read."""
    steps: list[tuple[list[_Value], list[_Value], _Node | None]] = []

    def produce(values: Iterable[_Value]) -> list[_Value]:
        roots = _roots(values)
        # Without recursion: chains of stored sums can be long.
        pending = [root for root in reversed(roots) if not root.produced]
        while pending:
            value = pending[-1]
            if value.produced:
                pending.pop()
                continue
            assert value.node is not None
            needed = _roots(value.node.reads)
            missing = [root for root in needed if not root.produced]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            value.produced = True
            steps.append((needed, [value], value.node))
        return roots

    for node in nodes:
        if node.stores or node.primitive in _REDUCING:
            roots = produce(node.reads)
            for value in node.writes:
                value.produced = True
            steps.append((roots, list(node.writes), node))
    produce(results)
    if written:
        steps.append((produce(written), [], None))
    return steps


def _less(peak: Peak, outside: Iterable[_Value]) -> Peak:
    """A body's peak without its results, which are counted outside of it."""
    return Peak(max(0, peak.bytes - sum(value.bytes for value in outside)), peak.buffers)


def _callee(eqn: Any) -> Any:
    """The jaxpr of a call that XLA inlines; None for other operations."""
    if eqn.primitive.name in _STORING:
        return None
    return next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)


def _size(aval: Any) -> int:
    """Bytes of an array; keys of random numbers count as their words."""
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(aval.shape)
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _open(jaxpr: Any) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _place(eqns: Sequence[Any]) -> str:
    """The innermost line of this package that an array comes from."""
    for eqn in eqns:
        traceback = eqn.source_info.traceback
        for frame in traceback.frames if traceback is not None else ():
            path = Path(frame.file_name)
            if "spatia_jax" in path.parts[:-1] and path.parent.name != "plan":
                return f"{path.parent.name}/{path.name}:{frame.line_num}"
    return eqns[0].primitive.name if eqns else "read from outside"

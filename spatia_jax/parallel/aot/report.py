"""Compiles a program for a slice and says what came out: does it fit, what is where, how long, what is communicated."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spatia_jax.parallel.aot.chips import Slice
from spatia_jax.parallel.aot.cost import Cost, estimate
from spatia_jax.parallel.aot.hlo import parse
from spatia_jax.parallel.aot.programs import Program

_GIGA = 10**9
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Report:
    """What is known of one program on one slice. All bytes and times are of each chip.

    Attributes:
        name: which program, in words.
        place: the slice.
        mesh: sizes of the mesh's axes.
        bytes: by class: "parameters", ..., "temporaries", "output", "code"; "padding" of arguments to a TPU's tiles.
        peak_bytes: all of them, less outputs that lie where arguments lay.
        flops: operations that one run needs on all chips together.
        cost: of one run; None if the compiler gave up for want of memory.
    """

    name: str
    place: Slice
    mesh: dict[str, int]
    bytes: dict[str, int]
    peak_bytes: int
    flops: float
    cost: Cost | None

    @property
    def fits(self) -> bool:
        return self.cost is not None and self.peak_bytes <= self.place.chip.hbm_bytes

    @property
    def mfu(self) -> float:
        """Operations needed over those that the chips could do in the estimated time."""
        if self.cost is None:
            return 0.0
        return self.flops / (len(self.place.devices) * self.place.chip.peak_flops * self.cost.seconds)

    def summary(self) -> str:
        """In a few words."""
        verdict = "fits" if self.fits else "does not fit"
        times = "" if self.cost is None else f", {self.cost.seconds:.3f} s, MFU {self.mfu:.1%}"
        return f"{self.peak_bytes / _GIGA:.1f} GB, {verdict}{times}"

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        cost = self.cost or Cost()
        return {
            "program": self.name,
            "topology": self.place.name,
            "mesh": self.mesh,
            "fits": self.fits,
            "peak_bytes": self.peak_bytes,
            "hbm_bytes": self.place.chip.hbm_bytes,
            "bytes": self.bytes,
            "estimated_step_s": cost.seconds,
            "seconds": {name: getattr(cost, name) for name in ("compute", "kernels", "exposed", "copies")},
            "model_flops": self.flops,
            "implied_mfu": self.mfu,
            "collectives": {
                kind: {"count": cost.counts[kind], "bytes": cost.bytes[kind]} for kind in sorted(cost.counts)
            },
            "not_priced": dict(cost.unpriced),
        }

    def table(self) -> str:
        """For people."""
        chip, count = self.place.chip, len(self.place.devices)
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.items() if size > 1) or "one device"
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines = [
            f"{self.name} on {self.place.name}, {count} chips as {axes}",
            "",
            *(f"  {name:24}{size / _GIGA:10.2f} GB" for name, size in self.bytes.items()),
            f"  {'at its peak':24}{self.peak_bytes / _GIGA:10.2f} GB of {chip.hbm_bytes / _GIGA:g}: {verdict}",
        ]
        if self.cost is None:
            return "\n".join([*lines, "  (more than there is, so there is no program to price)"])
        cost = self.cost
        waiting = f"waiting for collectives {cost.exposed:.3f}, for copies {cost.copies:.3f}"
        lines += [
            "",
            *(
                f"  {kind:24}{cost.counts[kind]:6} x, {cost.bytes[kind] / _GIGA:10.3f} GB"
                for kind in sorted(cost.counts)
            ),
            "",
            f"  estimated {cost.seconds:.3f} s: XLA's cycles {cost.compute:.3f}, kernels {cost.kernels:.3f}, {waiting}",
            f"  {self.flops / 1e12:,.0f} TFLOP needed: {self.mfu:.1%} of the chips' {chip.peak_flops / 1e12:g} TFLOP/s",
        ]
        if cost.unpriced:
            lines.append("  not priced: " + ", ".join(f"{name} ({n} x)" for name, n in sorted(cost.unpriced.items())))
        return "\n".join(lines)


def report(name: str, program: Program, mesh: Mesh, place: Slice) -> tuple[Report, jax.stages.Compiled | None]:
    """Compiles `program` for `mesh`, whose devices are those of `place`.

    Returns:
        What came out, and the program, None if it needs more memory than the chips have.
    """
    sizes, ordered = dict(mesh.shape), dataclasses.replace(place, devices=tuple(mesh.devices.flat))
    known = {kind: held_bytes(tree) for kind, tree in program.classes.items()}
    if (held := sum(known.values())) > place.chip.hbm_bytes:  # no need to compile
        return Report(name, place, sizes, known, held, program.flops, None), None
    try:
        compiled = program.compile(mesh)
    except jax.errors.JaxRuntimeError as error:
        if (needed := _needed(str(error))) is None:
            raise
        return Report(name, place, sizes, known, needed, program.flops, None), None
    usage, text = compiled.memory_analysis(), compiled.as_text()
    assert usage is not None
    assert text is not None
    classes = {
        **known,
        "padding": usage.argument_size_in_bytes - sum(known.values()),
        "temporaries": usage.temp_size_in_bytes,
        "output": usage.output_size_in_bytes - usage.alias_size_in_bytes,
        "code": usage.generated_code_size_in_bytes,
    }
    cost = estimate(parse(text), ordered)
    return Report(name, place, sizes, classes, sum(classes.values()), program.flops, cost), compiled


def held_bytes(tree: Any) -> int:
    """Bytes of a pytree's shards on each device, without padding."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 0
        assert leaf.sharding is not None
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _needed(message: str) -> int | None:
    """Bytes that a program would have needed, by the compiler's message that they are not there; None of another."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None

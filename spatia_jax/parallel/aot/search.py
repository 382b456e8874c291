"""Tries meshes, batches and ways of rematerialising, one after another, and keeps the fastest that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax

from spatia_jax.config import Experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.parallel import MeshConfig, make_mesh
from spatia_jax.parallel.aot.chips import Slice
from spatia_jax.parallel.aot.programs import Kind, sampling_program, training_program
from spatia_jax.parallel.aot.report import Report, report
from spatia_jax.plan.plan import WeightsDtype
from spatia_jax.training.paper_stages import Stage


@dataclass(frozen=True)
class Choice:
    """One way to run a program; see `AotArgs`."""

    config: Experiment
    kind: Kind
    stage: Stage
    mesh: MeshConfig
    dtype: WeightsDtype

    def __str__(self) -> str:
        axes = [f"{name} {size}" for name, size in dataclasses.asdict(self.mesh).items() if size > 1]
        words = [f"{self.config.name} {self.kind}", *([self.stage] if self.kind == "train" else []), *axes]
        return ", ".join(words)


def default_mesh(kind: Kind, count: int) -> MeshConfig:
    """All chips split the parameters and the batch in training, and the tokens of the one clip in sampling."""
    return MeshConfig(fsdp=count) if kind == "train" else MeshConfig(context=count)


def attempt(choice: Choice, place: Slice) -> tuple[Report, jax.stages.Compiled | None]:
    """Compiles one choice.

    Raises:
        InputError: it is no possible one, e.g. heads that do not divide; nothing was compiled.
    """
    model, mesh = Model(choice.config), make_mesh(choice.mesh, place.devices)
    if choice.kind == "train":
        program = training_program(choice.stage, model, mesh)
    else:
        program = sampling_program(choice.kind, model, mesh, choice.dtype)
    return report(str(choice), program, mesh, place)


def search(choice: Choice, place: Slice, say: Callable[[str], None]) -> tuple[Report, jax.stages.Compiled | None]:
    """The fastest of the choices that fit, by operations needed a second; the smallest if none does."""
    best: tuple[Report, jax.stages.Compiled | None] | None = None
    for other in choices(choice, len(place.devices)):
        try:
            found = attempt(other, place)
        except InputError as error:
            say(f"{other}: {error}")
            continue
        result = found[0]
        seconds = f"{result.cost.seconds:.3f} s, MFU {result.mfu:.1%}" if result.cost else "no times"
        say(f"{other}: {result.peak_bytes / 1e9:.1f} GB, {'fits' if result.fits else 'does not fit'}, {seconds}")
        if best is None or _rank(result) > _rank(best[0]):
            best = found
    if best is None:
        raise InputError(f"--search: nothing that was tried is possible on {place.name}")
    return best


def choices(choice: Choice, count: int) -> Iterator[Choice]:
    """What `search` tries."""
    for mesh in _meshes(choice.kind, count):
        yield dataclasses.replace(choice, mesh=mesh)


def _meshes(kind: Kind, count: int) -> Iterator[MeshConfig]:
    parts = [n for n in (1, 2, 4, 8) if count % n == 0]
    for tensor in parts[:3]:
        for context in parts if kind == "train" else [count // tensor]:
            if tensor * context <= count and count % (tensor * context) == 0:
                yield MeshConfig(fsdp=count // tensor // context, context=context, tensor=tensor)


def _rank(result: Report) -> tuple[bool, float]:
    return result.fits, result.mfu if result.fits else -result.peak_bytes

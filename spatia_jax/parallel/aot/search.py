"""Tries meshes, batches and ways of rematerialising, one after another, and keeps the fastest that fits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from spatia_jax.config import Experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.parallel import MeshConfig, make_mesh
from spatia_jax.parallel.aot.chips import Slice
from spatia_jax.parallel.aot.programs import Clips, Kind, sampling_program, training_program
from spatia_jax.parallel.aot.report import Report, report
from spatia_jax.parallel.rematerialisation import REMATS, Remat
from spatia_jax.plan.plan import WeightsDtype
from spatia_jax.training.paper_stages import Stage, stage_config


@dataclass(frozen=True)
class Choice:
    """One way to run a program; see `AotArgs`."""

    config: Experiment
    kind: Kind
    stage: Stage
    mesh: MeshConfig
    dtype: WeightsDtype
    clips: Clips | None = None

    def __str__(self) -> str:
        axes = [f"{name} {size}" for name, size in dataclasses.asdict(self.mesh).items() if size > 1]
        batch, remat = stage_config(self.config.training, self.stage).batch_size, self.config.transformer.remat
        stage = f"{self.stage} {self.clips} clips" if self.clips else self.stage
        training = [stage, f"batch {batch}", f"remat {remat}"] if self.kind == "train" else []
        return ", ".join([f"{self.config.name} {self.kind}", *training, *axes])


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
        program = training_program(choice.stage, model, mesh, choice.clips)
    else:
        program = sampling_program(choice.kind, model, mesh, choice.dtype)
    return report(str(choice), program, mesh, place)


def search(choice: Choice, place: Slice, say: Callable[[str], None]) -> tuple[Report, jax.stages.Compiled | None]:
    """The fastest of the choices that fit, by operations needed a second; the smallest if none does.

    For each mesh and batch, what is kept for the backward pass is tried from most to least until it fits: keeping less
    would only be slower. Each try is one compilation.
    """
    best: tuple[Report, jax.stages.Compiled | None] | None = None
    for ladder in ladders(choice, len(place.devices)):
        for other in ladder:
            try:
                found = attempt(other, place)
            except InputError as error:
                say(f"{other}: {error}")
                break
            result = found[0]
            say(f"{other}: {result.summary()}")
            if best is None or _rank(result) > _rank(best[0]):
                best = found
            if result.fits:
                break
    if best is None:
        raise InputError(f"--search: nothing that was tried is possible on {place.name}")
    return best


def ladders(choice: Choice, count: int) -> Iterator[list[Choice]]:
    """What `search` tries: for each mesh and batch, choices that need less and less memory."""
    for mesh in _meshes(choice.kind, count):
        moved = dataclasses.replace(choice, mesh=mesh)
        if choice.kind != "train":
            yield [moved]
            continue
        batch = stage_config(choice.config.training, choice.stage).batch_size
        for size in (batch, 2 * batch):
            yield [_changed(moved, size, remat) for remat in REMATS]


def _changed(choice: Choice, batch: int, remat: Remat) -> Choice:
    config = choice.config
    stage = dataclasses.replace(stage_config(config.training, choice.stage), batch_size=batch)
    changes: dict[str, Any] = {choice.stage: stage}
    training = dataclasses.replace(config.training, **changes)
    transformer = dataclasses.replace(config.transformer, remat=remat)
    return dataclasses.replace(choice, config=dataclasses.replace(config, training=training, transformer=transformer))


def _meshes(kind: Kind, count: int) -> Iterator[MeshConfig]:
    """All chips along `fsdp`, `context` and `tensor`; of the last two as many as lie close together."""
    parts = [n for n in (1, 2, 4, 8) if count % n == 0]
    for tensor, context in itertools.product(parts, parts):
        if tensor * context <= 8 and count % (tensor * context) == 0:
            rest = count // (tensor * context)
            if kind == "train" or rest == 1:
                yield MeshConfig(fsdp=rest, context=context, tensor=tensor)


def _rank(result: Report) -> tuple[bool, float]:
    return result.fits, result.mfu if result.fits else -result.peak_bytes

"""The two stages of the paper: opening clips on the projection, then continuing clips with history and references.

What a stage trains is said by its `FitConfig.train_only`: all of transformer and text encoder from scratch
(configs/tiny.py), the control branch beside a frozen Wan2.2 (stage 1 of configs/spatia_5b_stage1.py), a LoRA of the
main blocks beside everything frozen (stage 2), or the whole transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Source
from pathlib import Path
from typing import Literal

from spatia_jax.config import TrainingConfig
from spatia_jax.data import Together
from spatia_jax.errors import InputError
from spatia_jax.model import Model, Params
from spatia_jax.parallel import distributed, param_shardings
from spatia_jax.text import Tokenizer
from spatia_jax.training.batches import Batches, together, training_mesh
from spatia_jax.training.cost import stage_cost
from spatia_jax.training.encoded import EncodedClips, is_encoded
from spatia_jax.training.examples import build_examples, clip_batches, example_batches, kinds_of, mixed, require_size
from spatia_jax.training.generator import GeneratorObjective
from spatia_jax.training.loop import Watch, fit
from spatia_jax.training.options import FitConfig
from spatia_jax.training.samples import make_sampler
from spatia_jax.weights.bundle import load_network

Stage = Literal["stage1", "stage2"]


def train_stage(
    model: Model,
    stage: Stage,
    source: Source[dict],
    tokenizer: Tokenizer,
    output: Path,
    start: Path | None,
    open_held_out: Callable[[], Source[dict]],
) -> dict[str, Params]:
    """Trains a stage to its end.

    Args:
        source: a data set, or `Together` several, whose batches are mixed.
        open_held_out: gives others, for what `Watch` looks at.
        start: a folder of weights to start from, where `output/weights` has none.

    Returns: the networks that were trained, whole.

    Raises:
        InputError: a network that the stage needs is nowhere.
    """
    training, config = model.config.training, stage_config(model.config.training, stage)
    objective = GeneratorObjective(model, stage_networks(model, stage))
    find = _Finder(model, output / "weights", start, config)
    frozen_names, begin_names = _needed(model, stage, start)
    frozen = {name: find(name) for name in frozen_names}
    begin = {name: find(name) for name in begin_names} or None

    def batches_of(source: Source[dict], cache: str) -> Batches:
        def whole() -> Params:
            return {name: find(name, whole=True) for name in frozen_names}

        mixed_from = source if isinstance(source, Together) else Together([source])
        parts = [
            stage_batches(model, stage, whole, held, tokenizer, output / f"{cache}{f'_{number}' if number else ''}")
            for number, held in enumerate(mixed_from.sources)
        ]
        return together(parts, mixed_from.weights)

    watch = Watch(cost=stage_cost(model, stage, config), fps=model.config.clip.fps)
    if config.evaluate_every or config.sample_every:
        held_out = distributed.first_alone(open_held_out)
        watch = Watch(
            batches_of(held_out, "examples_held_out"),
            make_sampler(model, held_out[0], tokenizer) if config.sample_every else None,
            watch.fps,
            watch.cost,
        )
    batches = batches_of(source, "examples")
    state = fit(objective, config, batches, output / stage, mesh=training.mesh, start=begin, frozen=frozen, watch=watch)
    return state.networks


def check_stage(model: Model, stage: Stage, output: Path, start: Path | None) -> None:
    """Raises InputError when weights that a stage needs are nowhere; loads nothing."""
    config = stage_config(model.config.training, stage)
    frozen, begin = _needed(model, stage, start)
    find = _Finder(model, output / "weights", start, config)
    for name in (*frozen, *begin):
        find.folder(name)
    if config.train_only and not begin:
        raise InputError(
            f"training.{stage}.train_only is {config.train_only}: there must be weights to freeze; say --start DIR"
        )


def _needed(model: Model, stage: Stage, start: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Networks that a stage uses as they are, and those that it starts from."""
    frozen = ("autoencoder", *(("inpainter",) if model.config.inpainter else ()))
    return frozen, ("transformer", "text_encoder") if start is not None or stage == "stage2" else ()


def stage_config(training: TrainingConfig, stage: Stage) -> FitConfig:
    return training.stage1 if stage == "stage1" else training.stage2


def stage_networks(model: Model, stage: Stage) -> tuple[str, ...]:
    """What the objective of a stage is about; a LoRA only acts where there is history."""
    lora = ("lora",) if stage == "stage2" and model.config.lora else ()
    return ("transformer", "text_encoder", *lora)


def stage_batches(
    model: Model,
    stage: Stage,
    frozen: Callable[[], Params],
    source: Source[dict],
    tokenizer: Tokenizer,
    cache: Path,
) -> Batches:
    """Batches of a stage, as the config says: raw clips, or latents, of the records or cached on disk.

    Cached latents that are missing are made now, with the networks of `frozen()`, by one process on one device.
    """
    require_size(source, model.config.clip)
    training, config = model.config.training, stage_config(model.config.training, stage)
    size, seed, share = config.batch_size, config.seed, 1.0 if stage == "stage1" else training.opening_share
    if training.latents == "on_the_fly":
        return clip_batches(model, source, tokenizer, batch_size=size, seed=seed, opening_share=share)
    kinds = kinds_of(share)
    if is_encoded(source):
        frozen_text = bool(config.train_only) and not any(path.startswith("text_encoder") for path in config.train_only)
        rows = {kind: EncodedClips(model, source, tokenizer, kind, frozen_text) for kind in kinds}
        return mixed(rows, size, seed, share)

    def build() -> None:
        params = frozen()
        for kind in kinds:
            build_examples(model, params, source, tokenizer, cache, kind)

    distributed.first_alone(build)
    length = model.config.clip.text_length
    return example_batches(cache, tokenizer, length, batch_size=size, seed=seed, opening_share=share)


class _Finder:
    """Loads a network from where it is, each device's pieces straight to it."""

    def __init__(self, model: Model, weights: Path, start: Path | None, config: FitConfig):
        self.model, self.config = model, config
        self.folders = [folder for folder in (weights, start) if folder is not None]
        self.mesh = training_mesh(model.config.training.mesh, config.batch_size // config.accumulate)

    def folder(self, name: str) -> Path:
        """The first folder that holds a network; InputError when none does."""
        for folder in self.folders:
            if (folder / f"{name}.safetensors").is_file() or (folder / name).is_dir():
                return folder
        places = " or ".join(map(str, self.folders))
        raise InputError(f"no weights of the {name} in {places}; train it first, or name a folder with --start")

    def __call__(self, name: str, *, whole: bool = False) -> Params:
        """A network where it is trained or used on the mesh; or whole, on this process's first device."""
        shardings = None if whole else param_shardings(self.model.abstract_params()[name], self.mesh)
        trained = not self.config.train_only or any(path.split(".")[0] == name for path in self.config.train_only)
        dtype = None if trained else self.config.frozen_dtype
        return load_network(self.model, self.folder(name), name, shardings=shardings, dtype=dtype)

"""The command behind train.py."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence as Source
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from spatia_jax.config import Experiment, load_experiment
from spatia_jax.data import Together, open_sequences
from spatia_jax.data.procedural import ProceduralSource
from spatia_jax.errors import InputError, exit_status
from spatia_jax.model import Model, Params
from spatia_jax.models.motion import MotionNetworkConfig
from spatia_jax.parallel import distributed, use_all_cores
from spatia_jax.text import Tokenizer, train_tokenizer
from spatia_jax.training import principal
from spatia_jax.training.checkpoints import gathered
from spatia_jax.training.latents import normalize_latents
from spatia_jax.training.loop import fit
from spatia_jax.training.motion import build_motion, motion_batches
from spatia_jax.training.objectives import AutoencoderObjective, DepthObjective, InpainterObjective, MotionObjective
from spatia_jax.training.paper_stages import check_stage, train_stage
from spatia_jax.training.sources import crop_batches, depth_batches
from spatia_jax.training.views import build_views, view_batches
from spatia_jax.weights.bundle import load_network, weights_folder
from spatia_jax.weights.store import save_params

Part = Literal["autoencoder", "depth", "inpainter", "motion", "stage1", "stage2"]
_DRAWS_SCENES = ("inpainter", "motion")  # of the procedural world, by themselves: no data set is rendered for them


@dataclasses.dataclass(frozen=True)
class TrainArgs:
    """What to train, on what, and where to.

    Attributes:
        part: autoencoder, depth and motion stand alone; the inpainter needs the depth network; stage1 (opening clips)
            needs the autoencoder (and the inpainter, if the config has one), stage2 (history and references) continues
            stage1.
        output: a folder for everything: checkpoints, metrics, trained weights.
        data: data sets of posed sequences (docs/data.md); by default the procedural world, rendered to `output/data`.
        data_weights: of several data sets, the shares of the batches of stage1 and stage2; by default as they are long.
        start: a folder of weights, e.g. the released ones: stage1 and stage2 start from what it has, where
            `output/weights` has nothing yet.
        experiment: any of its fields can be set.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    part: Part = "autoencoder"
    output: Path = Path("runs/tiny")
    data: tuple[Path, ...] = ()
    data_weights: tuple[float, ...] = ()
    start: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; bad input is one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_status(lambda: train(parse_args(argv)))


def parse_args(argv: list[str]) -> TrainArgs:
    """A config file, then options; InputError without the file."""
    if not argv or argv[0].startswith("-"):
        raise InputError("the first argument is a config file, e.g. python train.py configs/tiny.py --part depth")
    default = TrainArgs(experiment=load_experiment(argv[0]))
    return tyro.cli(TrainArgs, default=default, args=argv[1:], prog=f"train.py {argv[0]}")


def train(args: TrainArgs) -> None:
    """Trains the asked part and writes its parameters (the moving average) to `output/weights`."""
    if not distributed.initialize():
        use_all_cores()
    model, weights = Model(args.experiment), args.output / "weights"
    if args.part == "autoencoder" and args.experiment.training.autoencoder_start == "principal":
        principal.check(args.experiment.autoencoder)
    if args.start is not None:
        weights_folder(args.experiment.name, args.start)
    if args.part in ("stage1", "stage2"):
        check_stage(model, args.part, args.output, args.start)
    folders = args.data or (args.output / "data",)
    if args.data_weights and (len(args.data_weights) != len(folders) or min(args.data_weights) <= 0):
        raise InputError(
            f"--data-weights {args.data_weights}: expected {len(folders)}, above 0, one for each of --data"
        )

    def open_all(split: str) -> list[Source[dict]]:
        return [open_sequences(args.experiment.procedural, folder, split) for folder in folders]

    if args.part in _DRAWS_SCENES:
        source: Source[dict] = ProceduralSource(args.experiment.procedural)
    else:
        source = Together(distributed.first_alone(lambda: open_all("train")), args.data_weights)
    if args.part in ("stage1", "stage2"):
        tokenizer = distributed.first_alone(lambda: _tokenizer(model, source, weights, args.start))
        params = train_stage(
            model, args.part, source, tokenizer, args.output, args.start,
            lambda: Together(open_all("validation"), args.data_weights),
        )  # fmt: skip
    elif jax.process_count() > 1:
        raise InputError(f"--part {args.part} is trained on one host; stage1 and stage2 on any number")
    else:
        params = _TRAINERS[args.part](model, source, args.output, weights)
    for name, value in params.items():
        whole = gathered(value)
        if jax.process_index() == 0:
            save_params(weights / f"{name}.safetensors", whole)
            print(f"wrote {weights / name}.safetensors")


def _train_autoencoder(model: Model, source: Source[dict], output: Path, weights: Path) -> dict[str, Params]:
    """On crops as long as a clip.

    What lies further back than training ever looked is not understood: after 9-frame crops alone, the last of 25
    frames came back at 14 dB, the first at 23.
    """
    training, clip = model.config.training, model.config.clip
    config = training.autoencoder
    sample = np.stack([source[i]["frames"][: clip.opening_frames] for i in range(min(64, len(source)))])
    start, linear = None, training.autoencoder_start == "principal"
    if linear:
        start = principal.principal_start(model, model.init("autoencoder", jax.random.key(config.seed)), sample)
    batches = crop_batches(
        source, frames=clip.continuing_frames, crop=training.crop, batch_size=config.batch_size, seed=config.seed
    )
    state = fit(
        AutoencoderObjective(model, freeze_encoder=linear),
        config,
        batches,
        output / "autoencoder",
        mesh=training.mesh,
        start=start,
    )
    return {"autoencoder": normalize_latents(model, state.ema, sample)}


def _train_depth(model: Model, source: Source[dict], output: Path, weights: Path) -> dict[str, Params]:
    config = model.config.training.depth
    batches = depth_batches(source, batch_size=config.batch_size, seed=config.seed)
    return {"depth": fit(DepthObjective(model), config, batches, output / "depth").ema}


def _train_inpainter(model: Model, source: Source[dict], output: Path, weights: Path) -> dict[str, Params]:
    if model.config.inpainter is None:
        raise InputError(f"config {model.config.name!r} has no inpainter to train")
    config = model.config.training.inpainter
    build_views(model, _load(model, weights, "depth"), output / "views")
    batches = view_batches(output / "views", batch_size=config.batch_size, seed=config.seed)
    return {"inpainter": fit(InpainterObjective(model), config, batches, output / "inpainter").ema}


def _train_motion(model: Model, source: Source[dict], output: Path, weights: Path) -> dict[str, Params]:
    training, network = model.config.training, model.config.motion or MotionNetworkConfig()
    tracked = Model(dataclasses.replace(model.config.tracked(), motion=network))
    examples = output / "motion_examples"
    build_motion(tracked.config, examples, scenes=training.motion_scenes)
    batches = motion_batches(examples, batch_size=training.motion.batch_size, seed=training.motion.seed)
    return {"motion": fit(MotionObjective(tracked), training.motion, batches, output / "motion").ema}


def _load(model: Model, weights: Path, *names: str) -> dict[str, Params]:
    return {name: load_network(model, weights, name) for name in names}


def _tokenizer(model: Model, source: Source[dict], weights: Path, start: Path | None) -> Tokenizer:
    """That of the weights there are, or one made for the captions."""
    if start is not None and not (weights / "tokenizer.json").exists():
        return Tokenizer.load(start)
    path = weights / "tokenizer.json"
    if not path.exists():
        captions = [source[i]["caption"] for i in range(len(source))]
        train_tokenizer(captions, model.config.text_encoder.vocab_size, path)
    return Tokenizer.load(path)


_TRAINERS = {
    "autoencoder": _train_autoencoder,
    "depth": _train_depth,
    "inpainter": _train_inpainter,
    "motion": _train_motion,
}

"""Measurements from the command line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from spatia_jax.config import load_experiment
from spatia_jax.errors import exit_status
from spatia_jax.evaluation import mapping as mapping_measures
from spatia_jax.evaluation import mapping_loop
from spatia_jax.evaluation.closed_loop import evaluate, table
from spatia_jax.io.atomic import write_json
from spatia_jax.mapper.registration import KINECT, register
from spatia_jax.mapper.stream import StreamConfig
from spatia_jax.mapper.window import WindowConfig
from spatia_jax.model import Model
from spatia_jax.weights.bundle import load_weights, weights_folder


@dataclass(frozen=True)
class ClosedLoopArgs:
    """Go out and come back in held-out procedural scenes, and compare with what is really there.

    Attributes:
        config: the experiment.
        scenes: how many.
        clips: of each video.
        weights: a folder; by default those that come with the package.
        given_depth: start from the photo's true depth instead of the depth network's.
        seed: of the sampler.
        json: a file for all numbers.
    """

    config: Path = Path("configs/tiny.py")
    scenes: int = 16
    clips: int = 4
    weights: Path | None = None
    given_depth: bool = False
    seed: int = 20917
    json: Path | None = None


def closed_loop(args: ClosedLoopArgs) -> None:
    """Prints the table, and writes the numbers of every scene to --json."""
    config = load_experiment(args.config)
    params, tokenizer = load_weights(Model(config), weights_folder(config.name, args.weights))
    result = evaluate(
        config, params, tokenizer,
        scenes=args.scenes, clips=args.clips, seed=args.seed, given_depth=args.given_depth,
    )  # fmt: skip
    print(table(result))
    if args.json:
        write_json(args.json, result)


@dataclass(frozen=True)
class MappingArgs:
    """Map a real sequence whose poses are known, without telling them, and compare.

    Attributes:
        sequence: a folder in the 7-Scenes layout.
        start, stride, keyframes: which frames: every stride-th from start on.
        prior_noise_m, prior_noise_deg: noise of the poses that the mapper is given as a prior.
        no_prior: give no poses at all: all frames start where the first one is.
        given_depth: give the sensor's depth.
        registered: carry poses and depth from the Kinect's depth camera, to which those of 7-Scenes belong, into its
            colour camera first.
        stream: map the frames one by one as they come, with loops (all of them unless --keyframes says otherwise).
        no_loops: without loop closure, for --stream.
        seed: of the noise.
        json: a file for the numbers.
    """

    sequence: Path
    start: int = 0
    stride: int = 1
    keyframes: int | None = None
    prior_noise_m: float = 0.05
    prior_noise_deg: float = 2.0
    no_prior: bool = False
    given_depth: bool = False
    registered: bool = False
    stream: bool = False
    no_loops: bool = False
    seed: int = 0
    json: Path | None = None


def mapping(args: MappingArgs) -> None:
    """Prints the numbers, and writes them to --json."""
    keyframes = args.keyframes or (None if args.stream else 16)
    sequence = mapping_measures.load_window(args.sequence, args.start, args.stride, keyframes)
    if args.registered:
        sequence = register(sequence, KINECT)
    if args.stream:
        result = mapping_measures.evaluate_stream(
            sequence, given_depth=args.given_depth, loops=not args.no_loops, config=StreamConfig()
        )
    else:
        result = mapping_measures.evaluate_window(
            sequence, noise_m=args.prior_noise_m, noise_deg=args.prior_noise_deg, no_prior=args.no_prior,
            given_depth=args.given_depth, seed=args.seed, config=WindowConfig(),
        )  # fmt: skip
    for name, value in result.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if args.json:
        write_json(args.json, result)


@dataclass(frozen=True)
class MappingLoopArgs:
    """Tell the mapper wrong poses, clip after clip, and compare what it finds with the truth.

    Attributes:
        config: the experiment.
        scenes: how many held-out ones.
        first_scene: the first of them.
        clips: of each video.
        degrees, percent: by which the told path turns away, and moves off, in every clip.
        frames: "seen" (of the scene itself) or "generated" (painted by the model on its map).
        mappers: which to compare.
        estimated_depth: start from the depth network's depth of the photo instead of the true one.
        motion_rule: find what moves by the rule that needs no weights, though the experiment has a motion network.
        weights: a folder; by default those that come with the package.
        seed: of the sampler.
        json: a file for all numbers.
    """

    config: Path = Path("configs/tiny.py")
    scenes: int = 4
    first_scene: int = 0
    clips: int = 6
    degrees: float = 1.0
    percent: float = 2.0
    frames: Literal["seen", "generated"] = "seen"
    mappers: tuple[Literal["adjusted", "trusting", "exact"], ...] = ("adjusted", "trusting", "exact")
    estimated_depth: bool = False
    motion_rule: bool = False
    weights: Path | None = None
    seed: int = 20917
    json: Path | None = None


def run_mapping_loop(args: MappingLoopArgs) -> None:
    """Prints the tables, and writes the numbers of every scene to --json."""
    config = load_experiment(args.config)
    if args.motion_rule:
        config = dataclasses.replace(config, motion=None)
    params, tokenizer = load_weights(Model(config.tracked()), weights_folder(config.name, args.weights))
    result = mapping_loop.evaluate(
        config, params, tokenizer,
        scenes=range(args.first_scene, args.first_scene + args.scenes), clips=args.clips, degrees=args.degrees,
        percent=args.percent, frames=args.frames, mappers=args.mappers, given_depth=not args.estimated_depth,
        seed=args.seed,
    )  # fmt: skip
    print(mapping_loop.table(result))
    print(mapping_loop.cost_table(result))
    if args.json:
        write_json(args.json, result)


def main() -> None:
    """Reads the command line and does what it says."""
    commands: dict[str, Callable[..., Any]] = {
        "closed-loop": ClosedLoopArgs,
        "mapping": MappingArgs,
        "mapping-loop": MappingLoopArgs,
    }
    args = tyro.extras.subcommand_cli_from_dict(commands, prog="spatia_jax.evaluation")
    match args:
        case MappingArgs():
            mapping(args)
        case MappingLoopArgs():
            run_mapping_loop(args)
        case _:
            closed_loop(args)


if __name__ == "__main__":
    sys.exit(exit_status(main))

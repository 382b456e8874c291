"""The command that makes a data set of real videos: python -m spatia_jax.data prepare (docs/data.md)."""

from __future__ import annotations

import functools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from spatia_jax.config import Experiment, load_experiment
from spatia_jax.data.videos import builder, runner
from spatia_jax.data.videos.captions import caption_key, read_captions
from spatia_jax.data.videos.footage import Item
from spatia_jax.data.videos.layouts import LAYOUTS, find_videos
from spatia_jax.data.videos.preprocess import Given, Motion, PrepareConfig, with_captions
from spatia_jax.errors import InputError, exit_status
from spatia_jax.model import Model
from spatia_jax.pixels import to_signed
from spatia_jax.training.encoded import EncodeClips
from spatia_jax.weights.bundle import check_weights, load_network, weights_folder

_AT_ONCE = 4  # frames that the depth network sees in one call


@dataclass(frozen=True)
class PrepareArgs:
    """Make a data set for train.py --data out of real videos. What was finished before is not done again.

    Attributes:
        source: the folder of the data set.
        layout: how it lies there; docs/data.md shows each.
        output: gets the records (tfds/), the finished videos (videos/), and rejected.jsonl.
        config: the experiment that it is for: its size and length of a clip are the defaults.
        height, width, frames: of a clip; by default the experiment's, with an opening and a continuing clip in it.
        step: frames between the starts of clips; by default clips do not overlap.
        fps: frames a second; by default the experiment's, for layouts whose videos say their own; 0: all frames.
        every: use every n-th frame.
        captions: a file of captions by video name (.json, .jsonl, or name, tab, text).
        no_captions: train without text, where there are none.
        require: reject videos that do not bring these.
        ignore: find these although they are given.
        motion: without masks, what moves is "found" by the mapper, or "none" does; "layout": none in RealEstate10K and
            7-Scenes, which are of static scenes.
        depth_network: complete depth with the experiment's depth network.
        encode: keep latents and text features in the records, encoded with the experiment's weights.
        weights: folder of the experiment's weights; by default those in the package.
        fov: horizontal field of view in degrees, where no intrinsics are known.
        median_depth: median depth that clips without a scale are scaled to.
        workers: processes.
        beam: run on Apache Beam with these options; "" is Beam's local runner.
    """

    source: Annotated[Path, tyro.conf.Positional]
    layout: Literal["realestate10k", "spatialvid", "7scenes", "videos"]
    output: Path
    config: Path = Path("configs/tiny.py")
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    step: int | None = None
    fps: float | None = None
    every: int = 1
    captions: Path | None = None
    no_captions: bool = False
    require: tuple[Given, ...] = ()
    ignore: tuple[Given, ...] = ()
    motion: Motion = "layout"
    depth_network: bool = False
    encode: bool = False
    weights: Path | None = None
    fov: float | None = None
    median_depth: float = 3.0
    workers: int = 1
    beam: str | None = None


@dataclass(frozen=True)
class EstimateDepth:
    """The experiment's depth network on uint8 frames; loaded once in every process that calls it."""

    experiment: Experiment
    weights: Path

    def __str__(self) -> str:
        return f"depth network of {self.experiment.name}, {self.weights}"

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """[t, h, w, 3] uint8 -> [t, h, w] metres."""
        estimate, params = _depth_network(self)
        padded = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % _AT_ONCE, axis=0)])
        parts = [np.asarray(estimate(params, part)) for part in np.split(padded, len(padded) // _AT_ONCE)]
        return np.concatenate(parts)[: len(frames)]


@functools.lru_cache(maxsize=1)
def _depth_network(network: EstimateDepth):
    model = Model(network.experiment)
    params = {"depth": load_network(model, network.weights, "depth")}
    return jax.jit(lambda params, frames: model.estimate_depth(params, to_signed(frames))), params


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; bad input is one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_status(lambda: command(argv))


def command(argv: list[str]) -> None:
    """`prepare` and its options."""
    if argv[:1] != ["prepare"]:
        raise InputError("expected: python -m spatia_jax.data prepare SOURCE --layout LAYOUT --output DIR")
    prepare(tyro.cli(PrepareArgs, args=argv[1:], prog="spatia_jax.data prepare"))


def prepare(args: PrepareArgs) -> None:
    """Finds the videos, prepares those that are not finished, gathers all, and says how many of what."""
    job, items = plan(args)
    beam = None if args.beam is None else shlex.split(args.beam)
    say = functools.partial(print, flush=True)
    finished, rejected = runner.run(job, items, workers=args.workers, beam_options=beam, say=say)
    print(f"{len(items)} videos: {len(finished)} prepared, {len(rejected)} rejected", end="")
    print(f" ({args.output / 'rejected.jsonl'} says why)" if rejected else "")
    clips = builder.gather(args.output, beam)
    counted = ", ".join(f"{count} {split}" for split, count in clips.items())
    print(
        f"{counted} clips of {job.config.frames} x {job.config.height} x {job.config.width} in {args.output / 'tfds'}"
    )
    print(f"train on them: python train.py {args.config} --data {args.output} (see docs/data.md for the sizes)")


def plan(args: PrepareArgs) -> tuple[runner.Job, list[Item]]:
    """What is to be done to which videos; InputError before anything is written."""
    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}; it must be at least 1")
    experiment = load_experiment(args.config)
    clip = experiment.clip
    frames = args.frames or clip.opening_frames + clip.new_frames
    network = encoder = None
    if args.encode and (args.height or args.width or frames < clip.opening_frames + clip.new_frames):
        raise InputError("--encode is for the size and at least the length of the experiment's clips")
    if args.depth_network or args.encode:
        weights = weights_folder(experiment.name, args.weights)
        check_weights(Model(experiment), weights, ["depth"] if args.depth_network else [])
        network = EstimateDepth(experiment, weights) if args.depth_network else None
        encoder = EncodeClips(experiment, weights) if args.encode else None
        if encoder is not None:
            encoder.check()
    config = PrepareConfig(
        height=args.height or clip.height, width=args.width or clip.width, frames=frames, step=args.step or frames,
        fps=(clip.fps if args.fps is None else args.fps) or None, every=args.every,
        require=args.require, ignore=args.ignore, captions=not args.no_captions, motion=args.motion,
        fov=args.fov, median_depth=args.median_depth, mapper=experiment.mapper,
    )  # fmt: skip
    if config.captions and args.captions is None and not LAYOUTS[args.layout].captions:
        raise InputError(f"the layout {args.layout} has no captions; give --captions FILE, or --no-captions")
    captions = None if args.captions is None else read_captions(args.captions)
    items = with_captions(find_videos(args.source, args.layout), captions, caption_key)
    return runner.Job(args.layout, config, args.output, network, encoder), items

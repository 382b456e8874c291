"""The command behind sample.py: read and check, open the world, run clip by clip, write everything."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from spatia_jax.cameras import Cameras, check_path, parse_path
from spatia_jax.config import Experiment, load_experiment
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write, recover_directory
from spatia_jax.io.manifest import write_manifest
from spatia_jax.io.progress import RolloutProgress
from spatia_jax.model import Model, Params
from spatia_jax.sampling import inputs as door
from spatia_jax.sampling.driver import Driver
from spatia_jax.sampling.outputs import keep_clip, load_clip, write_outputs
from spatia_jax.sampling.saved_world import load_world, save_world
from spatia_jax.text import NEGATIVE_PROMPT, Tokenizer
from spatia_jax.weights.bundle import load_weights, weights_folder
from spatia_jax.world import ClipRequest, World, observe, open_world, to_signed


@dataclass(frozen=True)
class SampleArgs:
    """What to generate, from what, and where to.

    Attributes:
        image: the photo that the world starts from; the embedded one if nothing is given.
        depth: its depth (16-bit PNG in millimetres, or .npy in metres); estimated if not given.
        mask: what moves in it (an image, bright = moving; or .npy frames x height x width): it stays out of the map.
        sequence: a folder of posed frames to start from instead of a photo.
        cameras: a camera file or folder: w2c.txt, RealEstate10K, TUM, COLMAP, transforms.json, 7-Scenes.
        intrinsics: intrinsics.txt with normalised fx fy cx cy; found beside --cameras by itself.
        path: the camera path in words, e.g. "pan left 40; there and back".
        every: use every n-th camera of the file.
        fov: horizontal field of view of the photo in degrees, where no intrinsics are given.
        prompt: a text, or one for each clip.
        prompts: a file with one prompt a line, one line a clip.
        negative_prompt: what guidance steers away from.
        clips: how many; by default as many as the camera file needs, or 4.
        weights: a folder of weights; those that come with the package by default.
        output: a new or empty folder, or one to --resume.
        resume: go on where an interrupted run in --output stopped.
        from_world: a saved world to go on from, with another path or prompt.
        seed: the same seed gives the same video.
        experiment: any of its fields can be set.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    image: Path | None = None
    depth: Path | None = None
    mask: Path | None = None
    sequence: Path | None = None
    cameras: Path | None = None
    intrinsics: Path | None = None
    path: str | None = None
    every: int = 1
    fov: float = 65.0
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    negative_prompt: str = NEGATIVE_PROMPT
    clips: int | None = None
    weights: Path | None = None
    output: Path = Path("outputs/sample")
    resume: bool = False
    from_world: Path | None = None
    seed: int = 20917


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; bad input is one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv or argv[0].startswith("-"):
            raise InputError('the first argument is a config file, e.g. sample.py configs/tiny.py --path "orbit 30"')
        default = SampleArgs(experiment=load_experiment(argv[0]))
        run(tyro.cli(SampleArgs, default=default, args=argv[1:], prog=f"sample.py {argv[0]}"))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from the last whole clip", file=sys.stderr)
        return 130
    return 0

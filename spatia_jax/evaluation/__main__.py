"""Measurements from the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from spatia_jax.config import load_experiment
from spatia_jax.errors import exit_status
from spatia_jax.evaluation.closed_loop import evaluate, table
from spatia_jax.io.atomic import atomic_write
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
    if args.json is not None:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the command line and does what it says."""
    closed_loop(tyro.extras.subcommand_cli_from_dict({"closed-loop": ClosedLoopArgs}, prog="spatia_jax.evaluation"))


if __name__ == "__main__":
    sys.exit(exit_status(main))

"""Released weights from the command line: look at files, convert them for `--weights`, export ours."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from spatia_jax.config import load_experiment
from spatia_jax.errors import InputError, exit_status
from spatia_jax.weights.checkpoints import open_checkpoint
from spatia_jax.weights.convert import convert, describe, export
from spatia_jax.weights.layouts import NETWORKS, ReleasedSizes, Sizes, slots_of
from spatia_jax.weights.release import SOURCES, find_release

Network = Literal["autoencoder", "transformer", "text_encoder", "depth", "lora"]


@dataclass(frozen=True)
class InspectArgs:
    """Say what a checkpoint or a folder of downloads is, and whether it fits; reads headers only.

    Attributes:
        path: a file, the folder of a sharded checkpoint, or a folder with everything that was downloaded.
        config: the experiment whose sizes it should fit; by default the released sizes.
    """

    path: tyro.conf.Positional[Path]
    config: Path | None = None


@dataclass(frozen=True)
class ConvertArgs:
    """Turn downloaded files into a folder for `sample.py --weights`; what is done already is skipped.

    Attributes:
        source: the folder with the downloads, nested as you like.
        target: the new folder.
        config: the experiment whose sizes they have; by default the released sizes.
        networks: which to convert.
        dtype: of the new files; "stored" changes nothing.
        format: one Orbax folder a network, or one safetensors file.
    """

    source: Annotated[Path, tyro.conf.arg(name="from")]
    target: Annotated[Path, tyro.conf.arg(name="to")]
    config: Path | None = None
    networks: tuple[Network, ...] = get_args(Network)
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    format: Literal["orbax", "safetensors"] = "orbax"


@dataclass(frozen=True)
class ExportArgs:
    """Write weights of ours under the official names, as safetensors.

    Attributes:
        weights: a folder that convert or train.py wrote.
        target: the new folder.
        config: the experiment whose sizes they have; by default the released sizes.
    """

    weights: Path
    target: Annotated[Path, tyro.conf.arg(name="to")]
    config: Path | None = None


def inspect(path: Path, sizes: Sizes) -> None:
    """Prints what is there; raises InputError when something does not fit."""
    if not path.is_dir():
        _inspect_one(path, sizes)
        return
    release = find_release(path, sizes)
    problems = []
    for part in release.parts.values():
        lines, wrong = describe(part.checkpoint, sizes)
        print("\n".join(lines))
        problems += [f"{part.naming.slot}: {problem}" for problem in wrong]
    if release.tokenizer:
        print(f"{release.tokenizer}: tokenizer")
    for file, why in release.passed_over.items():
        print(f"{file}: not used: {why}")
    wanted = [slot for network in NETWORKS for slot in slots_of(network, sizes)]
    for slot in release.missing([*wanted, "tokenizer"]):
        print(f"missing: {slot} ({SOURCES[slot]})")
    if problems:
        raise InputError(f"{path}: does not fit the config: " + "; ".join(problems))


def _inspect_one(path: Path, sizes: Sizes) -> None:
    lines, problems = describe(open_checkpoint(path), sizes)
    print("\n".join(lines))
    if problems:
        raise InputError(f"{path}: does not fit the config: " + "; ".join(problems))
    print("  fits the config")


def main() -> None:
    """Reads the command line and does what it says."""
    commands: dict[str, Any] = {"inspect": InspectArgs, "convert": ConvertArgs, "export": ExportArgs}
    args = tyro.extras.subcommand_cli_from_dict(commands, prog="spatia_jax.weights")
    sizes = load_experiment(args.config) if args.config else ReleasedSizes()
    match args:
        case InspectArgs():
            inspect(args.path, sizes)
        case ConvertArgs():
            convert(args.source, args.target, sizes, networks=args.networks, dtype=args.dtype, format=args.format)
        case ExportArgs():
            export(args.weights, args.target, sizes)


if __name__ == "__main__":
    sys.exit(exit_status(main))

"""Compiles a program of an experiment for a slice of TPUs that nobody has rented yet, and says whether it fits.

    python -m spatia_jax.parallel.aot configs/spatia_5b.py --topology v5p:2x2x1 --program sample --json sample.json

Exit status 2 where it does not fit. Needs no TPU, and little memory: nothing is allocated (docs/aot.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from spatia_jax.config import Experiment, load_experiment
from spatia_jax.errors import InputError, exit_status
from spatia_jax.io.atomic import atomic_write, write_json
from spatia_jax.parallel import MeshConfig
from spatia_jax.parallel.aot.chips import open_slice
from spatia_jax.parallel.aot.executable import save_executable
from spatia_jax.parallel.aot.programs import Clips, Kind
from spatia_jax.parallel.aot.search import Choice, attempt, default_mesh, search
from spatia_jax.plan.plan import WeightsDtype
from spatia_jax.training.paper_stages import Stage


@dataclass(frozen=True)
class AotArgs:
    """What to compile, and for what.

    Attributes:
        experiment: any of its fields can be set.
        topology: chip and shape of the slice, e.g. v5p:4x4x4.
        program: a training step, a denoising step with guidance, the decoding of a clip, or a whole round of the loop.
        stage: of training.
        clips: of a training batch, those with references or those without; by default opening clips in stage 1 and
            continuing ones in stage 2.
        mesh: of the slice's chips; when not given, `fsdp` takes all of them in training and `context` in sampling.
        weights_dtype: of kernels and embeddings, in sampling.
        search: try batches, ways of rematerialising and meshes, and print the best that fits.
        json: also write the figures here.
        text: also write the compiled program here, as XLA prints it: what the times were read from.
        save: also write the executable here; that of `sample` is what sample.py reads as `step-continuing` in the
            folder of its `--executables`.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    topology: str = "v5p:4x4x4"
    program: Kind = "train"
    stage: Stage = "stage1"
    clips: Clips | None = None
    mesh: MeshConfig = MeshConfig()
    weights_dtype: WeightsDtype = "bfloat16"
    search: bool = False
    json: Path | None = None
    text: Path | None = None
    save: Path | None = None


def run(args: AotArgs) -> None:
    """Prints the report, writes what was asked for; raises InputError if the program does not fit."""
    place = open_slice(args.topology)
    mesh = args.mesh if args.mesh.num_devices > 1 else default_mesh(args.program, len(place.devices))
    choice = Choice(args.experiment, args.program, args.stage, mesh, args.weights_dtype, args.clips)
    if args.search:
        result, compiled = search(choice, place, say=print)
    else:
        result, compiled = attempt(choice, place)
    print(result.table())
    if args.json is not None:
        write_json(args.json, result.as_json())
    if args.text is not None and compiled is not None:
        with atomic_write(args.text) as temporary:
            temporary.write_text(compiled.as_text() or "", encoding="utf-8")
    if not result.fits:
        raise InputError(f"{result.name} needs {result.peak_bytes:,} bytes of each chip of {args.topology}, which has"
                         f" {result.place.chip.hbm_bytes:,}; --search looks for a way")  # fmt: skip
    if args.save is not None and compiled is not None:
        save_executable(args.save, compiled, args.experiment, result.mesh)


def main() -> None:
    """Reads the command line and does what it says."""
    argv = sys.argv[1:]
    if not argv or argv[0].startswith("-"):
        raise InputError(
            "the first argument is a config file, e.g. python -m spatia_jax.parallel.aot configs/spatia_5b.py"
        )
    default = AotArgs(experiment=load_experiment(argv[0]))
    run(tyro.cli(AotArgs, default=default, args=argv[1:], prog=f"spatia_jax.parallel.aot {argv[0]}"))


if __name__ == "__main__":
    sys.exit(exit_status(main))

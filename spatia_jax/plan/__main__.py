"""What a run needs of each device's memory, from the command line: exit status 2 where it does not fit."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import jax
import tyro

from spatia_jax.config import Experiment, load_experiment
from spatia_jax.errors import InputError, exit_status
from spatia_jax.parallel import MeshConfig
from spatia_jax.plan import device_memory, plan, require_fit
from spatia_jax.plan.plan import Platform, WeightsDtype, size
from spatia_jax.plan.xla import compile_step


@dataclass(frozen=True)
class PlanArgs:
    """What a run of a config needs of each device's memory.

    Attributes:
        experiment: any of its fields can be set.
        mesh: over how many devices the parameters are split.
        weights_dtype: of kernels and embeddings, as they are loaded.
        platform: of the devices; by default the one here.
        device_memory: GiB of each device; by default what is here, on CPU the machine's.
        compile: let XLA say what one denoising step needs: compiles it at full size for the backend here.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    mesh: MeshConfig = MeshConfig()
    weights_dtype: WeightsDtype = "float32"
    platform: Platform | None = None
    device_memory: float | None = None
    compile: bool = False


def run(args: PlanArgs) -> None:
    """Prints the plan; raises InputError if the run does not fit."""
    planned = plan(args.experiment, args.mesh, weights_dtype=args.weights_dtype, platform=args.platform)
    limit = device_memory() if args.device_memory is None else int(args.device_memory * 2**30)
    print(planned.table())
    if args.compile:
        compiled = compile_step(args.experiment, args.mesh, args.weights_dtype)
        print(f"  XLA for this {jax.default_backend()}: one denoising step makes {size(compiled)}")
    require_fit(planned, limit)
    print(f"  fits: {size(limit)} are there")


def main() -> None:
    """Reads the command line and does what it says."""
    argv = sys.argv[1:]
    if not argv or argv[0].startswith("-"):
        raise InputError("the first argument is a config file, e.g. python -m spatia_jax.plan configs/tiny.py")
    default = PlanArgs(experiment=load_experiment(argv[0]))
    run(tyro.cli(PlanArgs, default=default, args=argv[1:], prog=f"spatia_jax.plan {argv[0]}"))


if __name__ == "__main__":
    sys.exit(exit_status(main))

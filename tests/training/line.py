"""A straight line to fit, with noise: everything of a training run but a network. Also a program, to be killed.

    python tests/training/line.py DIRECTORY STEPS [--devices N] [--mesh AXIS=N ...] [--die-at STEP] [--die-saving STEP]
        [--die-reading STEP] [--stop-reading STEP] [--slow SECONDS]

writes DIRECTORY/state.npz at the end.
"""

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from spatia_jax.training import Batches, FitConfig, OptimizerConfig, fit

SIZE = 8


@dataclass(frozen=True)
class Line:
    """y = x a + b, with noise from the keys; from step `breaks_at` on the loss is not a number."""

    breaks_at: int = 1000
    width: int = 4

    def init(self, key):
        return {"layer": {"kernel": jax.random.normal(key, (self.width, self.width)), "bias": jnp.zeros(self.width)}}

    def loss(self, params, batch, keys):
        x = batch["x"] + 0.01 * jax.vmap(lambda key: jax.random.normal(key, (self.width,)))(keys)
        error = x @ params["layer"]["kernel"] + params["layer"]["bias"] - 3 * batch["x"] - 1
        return jnp.where(batch["step"].max() >= self.breaks_at, jnp.nan, jnp.mean(jnp.square(error))), {}


class Points:
    """Row i is a function of i; rows of one step share its number. Reading one may kill the process, or stop it."""

    def __init__(self, width=4, die_at=None, stop_at=None):
        self.width, self.die_at, self.stop_at = width, die_at, stop_at

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        if self.die_at is not None and index // SIZE >= self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.stop_at is not None and index // SIZE == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = np.random.default_rng(index).normal(size=self.width).astype(np.float32)
        return {"x": x, "step": np.int32(index // SIZE)}


def batches(width=4, die_at=None, stop_at=None):
    return Batches((grain.MapDataset.source(Points(width, die_at, stop_at)),), SIZE)


def config(steps=12, **changes):
    optimizer = OptimizerConfig(learning_rate=0.1, warmup_steps=1)
    return FitConfig(**{"steps": steps, "batch_size": SIZE, "log_every": 1, "save_every": 4, "optimizer": optimizer}
                     | changes)  # fmt: skip


def leaves(state):
    """Every number of a state by its path: step, parameters, average, optimizer."""
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--mesh", nargs="*", default=())
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--die-saving", type=int)
    parser.add_argument("--die-reading", type=int)
    parser.add_argument("--stop-reading", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    args = parser.parse_args(argv)
    from spatia_jax.parallel import MeshConfig, distributed

    jax.config.update("jax_num_cpu_devices", args.devices)
    distributed.initialize()
    mesh = MeshConfig(**{name: int(size) for name, _, size in (axis.partition("=") for axis in args.mesh)})

    def say(line):
        print(line, flush=True)
        time.sleep(args.slow)
        if args.die_at and line.startswith(f"step {args.die_at}/"):
            saved = args.directory / "checkpoints" / str(args.die_at // 4 * 4)
            while not saved.exists():  # saving goes on in the background
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    if args.die_saving:
        die_when_saved(args.die_saving)
    data = batches(die_at=args.die_reading, stop_at=args.stop_reading)
    state = fit(Line(), config(args.steps), data, args.directory, mesh=mesh, say=say)
    if jax.process_index() == 0:
        np.savez(args.directory / "state.npz", **leaves(state))


def die_when_saved(step):
    """SIGKILL when all files of this step's checkpoint are written, and the folder is about to get its name."""
    from orbax.checkpoint._src.path import atomicity

    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def die(self, *args, **kwargs):
        if Path(self.get_final()).name == str(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return await finalize(self, *args, **kwargs)

    atomicity.AtomicRenameTemporaryPath.finalize = die


if __name__ == "__main__":
    main(sys.argv[1:])

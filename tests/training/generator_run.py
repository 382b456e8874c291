"""train.py, to be killed: says what each batch was, and writes the last state to compare.

    python tests/training/generator_run.py DIRECTORY --die-at STEP|--die-saving STEP|--whole 0 ARGUMENTS OF TRAIN.PY

DIRECTORY gets batches.txt, a line for each batch that was trained on, and state.npz at the end.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from training.line import die_when_saved, leaves

from spatia_jax.training import command, loop, paper_stages


def main(directory, death, step, *arguments):
    directory, step = Path(directory), int(step)
    to_devices, log, fit = loop.to_devices, loop.Log.__call__, paper_stages.fit

    def noted(batch, devices):
        digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(batch))).hexdigest()
        with open(directory / "batches.txt", "a", encoding="utf-8") as file:
            file.write(digest + "\n")
        return to_devices(batch, devices)

    def log_and_die(self, number, metrics):
        log(self, number, metrics)
        if death == "--die-at" and number + 1 == step:
            while self.last_saved() is None or not list(self.directory.glob(f"checkpoints/{self.last_saved()}/*")):
                time.sleep(0.01)  # saving goes on in the background
            os.kill(os.getpid(), signal.SIGKILL)

    def fit_and_keep(*args, **kwargs):
        state = fit(*args, **kwargs)
        np.savez(directory / "state.npz", **leaves(state))
        return state

    loop.to_devices, loop.Log.__call__, paper_stages.fit = noted, log_and_die, fit_and_keep
    if death == "--die-saving":
        die_when_saved(step)
    return command.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""test_resume.py for the generator: stage 2 of the micro experiment by train.py, everything made inside the step."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.model import Model
from spatia_jax.text import train_tokenizer
from spatia_jax.weights.store import save_params

TESTS = Path(__file__).resolve().parents[1]
MICRO = TESTS / "configs" / "micro.py"
STEPS, SAVED = 6, 2  # checkpoints after steps 2, 4 and 6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Weights to start from, and the folder of the data."""
    folder, model = tmp_path_factory.mktemp("start"), Model(load_experiment(MICRO))
    for name in ("autoencoder", "inpainter", "transformer", "text_encoder"):
        params = jax.jit(lambda key, name=name: model.init(name, key))(jax.random.key(0, impl="rbg"))
        save_params(folder / f"{name}.safetensors", jax.tree.map(lambda leaf: np.asarray(leaf) + 0.01, params))
    train_tokenizer(["a room", "a wall"], 300, folder / "tokenizer.json")
    return folder


def train(start, directory, *death, status=0):
    """What a run says; it must end with `status`."""
    stage = {"steps": STEPS, "save-every": SAVED, "log-every": 1, "optimizer.warmup-steps": 1, "accumulate": 2}
    options = [word for name, value in stage.items() for word in (f"--training.stage2.{name}", str(value))]
    arguments = [str(MICRO), "--part", "stage2", "--start", str(start), "--data", str(start / "data"),
                 "--output", str(directory), "--training.latents", "on_the_fly", *options]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(TESTS / "training" / "generator_run.py"), str(directory), *map(str, death), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    train(start, directory, "--whole", 0)
    return directory


def batches(directory):
    return (directory / "batches.txt").read_text().split()


@pytest.mark.parametrize("death", [("--die-at", SAVED + 1), ("--die-saving", 2 * SAVED)], ids=["between", "saving"])
def test_a_killed_generator_goes_on_with_the_same_bits(death, start, whole, tmp_path):
    """Parameters, average, optimizer, the exported weights and the order of the data; noise and everything else that is
    drawn (captions, references and maps withheld) shows in the parameters."""
    train(start, tmp_path, *death, status=-signal.SIGKILL)
    read = len(batches(tmp_path))
    said = train(start, tmp_path, "--whole", 0)
    assert f"resuming from step {SAVED}" in said
    assert ("its writing was not finished" in said) == ("--die-saving" in death)
    assert batches(whole)[SAVED:] != batches(whole)[: STEPS - SAVED]  # so that a start over would show
    assert batches(tmp_path) == batches(whole)[:read] + batches(whole)[SAVED:]
    expected, found = (np.load(directory / "state.npz") for directory in (whole, tmp_path))
    assert {name.split(".")[1].split("[")[0] for name in expected} >= {"params", "ema", "opt_state", "step"}
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    for name in ("transformer", "text_encoder"):
        file = Path("weights") / f"{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()

"""python -m spatia_jax.data prepare, from a folder to a data set that trains."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from data import small_videos as small

from spatia_jax.config import load_experiment
from spatia_jax.data import open_sequences
from spatia_jax.model import Model
from spatia_jax.text import train_tokenizer
from spatia_jax.training import command
from spatia_jax.training.encoded import EncodeClips
from spatia_jax.training.prepare import main
from spatia_jax.weights.store import save_params

MICRO = Path(__file__).resolve().parent.parent / "configs" / "micro.py"


@pytest.fixture(autouse=True)
def _devices_as_they_are(monkeypatch):
    """How many there are was fixed when the tests started."""
    monkeypatch.setattr(command, "use_all_cores", lambda: None)


def prepare(source: Path, output: Path, *more: str) -> int:
    return main(["prepare", str(source), "--output", str(output), "--config", str(MICRO), *more])


def test_the_command_says_what_it_did(tmp_path, capsys):
    small.make_seven_scenes(tmp_path / "source")
    (tmp_path / "source/chess/seq-02/frame-000002.pose.txt").unlink()
    (tmp_path / "captions.json").write_text(json.dumps({"seq-01": "a wall", "seq-02": "a wall", "seq-03": "a floor"}))
    arguments = ("--layout", "7scenes", "--captions", str(tmp_path / "captions.json"))
    for again in (False, True):
        assert prepare(tmp_path / "source", tmp_path / "out", *arguments) == 0
        said = capsys.readouterr().out
        assert ("2 of 3 videos are prepared already" in said) == again
        assert "chess/seq-02: rejected:" in said
        assert "3 videos: 2 prepared, 1 rejected" in said
        assert "1 test, 1 train clips of 9 x 32 x 64" in said
    record = open_sequences(load_experiment(MICRO).procedural, tmp_path / "out")[0]
    assert record["caption"] == "a wall"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "videos"], "has no captions; give --captions FILE, or --no-captions"),
        (["--layout", "videos", "--no-captions"], "nothing in the layout videos"),
        (["--layout", "7scenes", "--captions", "no.json"], "no.json: no such file"),
        (["--layout", "7scenes", "--no-captions", "--frames", "1"], "frames is 1; a clip has at least 2"),
        (["--layout", "7scenes", "--no-captions", "--workers", "0"], "--workers is 0"),
        (["--layout", "7scenes", "--no-captions", "--encode", "--height", "16"], "--encode is for the size"),
        (["--layout", "7scenes", "--no-captions", "--depth-network"], "has no embedded weights; say where"),
        (
            ["--layout", "7scenes", "--no-captions", "--require", "depth", "--ignore", "depth"],
            "depth: cannot be both required and ignored",
        ),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(arguments, message, tmp_path, capsys):
    (tmp_path / "source").mkdir()
    assert prepare(tmp_path / "source", tmp_path / "out", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def save_weights(folder: Path, *names: str) -> None:
    model = Model(load_experiment(MICRO))
    for name in names:
        params = jax.jit(lambda key, name=name: model.init(name, key))(jax.random.key(0, impl="rbg"))
        save_params(folder / f"{name}.safetensors", params)
    train_tokenizer(["a wall", "a floor"], 300, folder / "tokenizer.json")


def train(data: Path, output: Path, *more: str) -> list[float]:
    """Losses of stage 1."""
    steps = ("--training.stage1.steps", "20", "--training.stage1.log-every", "1")
    arguments = [str(MICRO), "--part", "stage1", "--data", str(data), "--output", str(output), *steps, *more]
    command.train(command.parse_args(arguments))
    lines = (output / "stage1" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_prepared_videos_train_and_encoded_ones_train_alike(tmp_path, capsys):
    small.make_seven_scenes(tmp_path / "source", ("chess/seq-01", "chess/seq-02"))
    (tmp_path / "captions.txt").write_text("seq-01\ta wall\nseq-02\ta floor\n")
    weights = tmp_path / "weights"
    save_weights(weights, "autoencoder", "inpainter", "text_encoder", "transformer")
    arguments = ("--layout", "7scenes", "--captions", str(tmp_path / "captions.txt"))
    assert prepare(tmp_path / "source", tmp_path / "plain", *arguments) == 0
    losses = train(tmp_path / "plain", tmp_path / "run", "--start", str(weights))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])

    more = ("--encode", "--weights", str(weights))
    assert prepare(tmp_path / "source", tmp_path / "encoded", *arguments, *more) == 0, capsys.readouterr().err
    experiment = load_experiment(MICRO)
    source = open_sequences(experiment.procedural, tmp_path / "encoded")
    again = EncodeClips(experiment, weights)(source[0])
    for name, value in again.items():
        np.testing.assert_array_equal(source[0][name], value)
    assert source[0]["opening_video"].dtype == np.float16
    assert np.isfinite(train(tmp_path / "encoded", tmp_path / "run2", "--start", str(weights))).all()
    assert not (tmp_path / "run2" / "examples").exists()  # nothing was encoded again


@pytest.mark.slow
def test_real_frames_with_depth_train(shared_dir, tmp_path):
    """The 7-Scenes folder, at the size of the tests: 20 steps with a falling loss."""
    source = shared_dir / "data" / "7scenes_redkitchen"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    assert prepare(source, tmp_path / "data", "--layout", "7scenes", "--no-captions") == 0
    save_weights(tmp_path / "weights", "autoencoder", "inpainter", "text_encoder", "transformer")
    losses = train(tmp_path / "data", tmp_path / "run", "--start", str(tmp_path / "weights"))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])

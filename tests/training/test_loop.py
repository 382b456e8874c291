"""The loop itself, on a straight line: SIGTERM, losses that are not finite, what is said and written."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.line import SIZE, Line, batches, config

from spatia_jax.errors import InputError
from spatia_jax.parallel import MeshConfig
from spatia_jax.training import Batches, Watch, fit
from spatia_jax.training.log import StepCost
from spatia_jax.training.state import join, split
from spatia_jax.training.step import make_state, make_train_step


def test_sigterm_saves_and_the_rest_has_the_same_bits(tmp_path):
    whole = fit(Line(), config(), batches(), tmp_path / "whole", say=lambda line: None)
    said = []

    def terminate_at_six(line):
        said.append(line)
        if line.startswith("step 6/"):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        fit(Line(), config(), batches(), tmp_path / "cut", say=terminate_at_six)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert said[-1].startswith("SIGTERM: saved step 6 in ")
    resumed = fit(Line(), config(), batches(), tmp_path / "cut", say=said.append)
    assert "resuming from step 6" in said
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.parametrize(("save_every", "kept"), [(2, "step 6 is the last good checkpoint"), (50, "no checkpoint")])
def test_a_loss_that_is_no_number_stops_before_it_is_saved(save_every, kept, tmp_path):
    with pytest.raises(FloatingPointError, match=f"step 7: loss nan.*{kept}"):
        fit(Line(breaks_at=6), config(save_every=save_every), batches(), tmp_path, say=lambda line: None)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved, default=0) == (6 if save_every == 2 else 0)


def test_every_line_has_speed_and_the_wait_for_data(tmp_path):
    said = []
    fit(Line(), config(3), batches(), tmp_path, say=said.append)
    assert all("s/step" in line and "examples/s" in line and "data " in line for line in said)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["seconds_per_step"] >= row["data_wait_seconds"] >= 0 for row in rows)


def test_accumulated_parts_are_equal_to_the_whole_batch():
    """To rounding, noise included: what is drawn for a row does not depend on the rows beside it."""
    key = jax.random.key(7)
    states = []
    for parts in (1, 2, 4):
        settings = config(accumulate=parts)
        state = make_state(Line(), settings, key)
        for step in range(3):
            state, metrics = jax.jit(make_train_step(Line(), settings))(state, batches()[step], key)
        states.append((state, metrics))
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), states[0], other)


def test_split_and_join_are_inverse():
    params = {"transformer": {"control": {"a": 1, "b": 2}, "blocks": {"c": 3}}, "text": {"d": 4}}
    chosen, rest = split(params, ["transformer.control.a", "text"])
    assert chosen == {"transformer": {"control": {"a": 1}}, "text": {"d": 4}}
    assert rest == {"transformer": {"control": {"b": 2}, "blocks": {"c": 3}}}
    assert join(chosen, rest) == params
    with pytest.raises(InputError, match="'transformer.lora' leads to no parameters; there are: control, blocks"):
        split(params, ["transformer.lora"])


def test_what_is_frozen_has_no_gradient_and_no_optimizer_state(tmp_path):
    state = fit(Line(), config(4, train_only=("layer.kernel",)), batches(), tmp_path, say=lambda line: None)
    np.testing.assert_array_equal(state.frozen["layer"]["bias"], np.zeros(4))
    assert set(state.params["layer"]) == {"kernel"}
    sizes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
    assert sizes == {(), (4, 4)}
    assert set(state.networks["layer"]) == {"kernel", "bias"}


class Passing(Line):
    """Training moves the bias up for ever; held-out rows, which are zero, want it at 0.3."""

    def loss(self, params, batch, keys):
        bias = params["layer"]["bias"].mean()
        return jnp.where((batch["x"] == 0).all(), jnp.square(bias - 0.3), 10.0 - bias), {}


def test_the_best_and_the_last_checkpoints_are_kept(tmp_path):
    zeros = batches().rows[0].map(lambda row: row | {"x": 0 * row["x"]})
    watch = Watch(validation=Batches((zeros,), SIZE))
    settings = config(20, save_every=2, evaluate_every=2, evaluate_batches=1, keep_last=2)
    fit(Passing(), settings, batches(), tmp_path, watch=watch, say=lambda line: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}
    best = min(held_out, key=held_out.get)
    assert 2 < best < 18
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {best, 18, 20}


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(fsdp=64), "fsdp 64 .* is 64 devices; there are"),
        (MeshConfig(data=3), "it must be a multiple of 3|is 3 devices"),
    ],
)
def test_a_mesh_that_cannot_be_is_said_before_anything_is_compiled(mesh, message, tmp_path):
    with pytest.raises(InputError, match=message):
        fit(Line(), config(), batches(), tmp_path, mesh=mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "fit.batch_size is 8; fit.accumulate (3) must divide it"),
        ({"frozen_dtype": "int8"}, "fit.frozen_dtype is 'int8'"),
        ({"keep_last": 0}, "fit.keep_last is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(InputError) as raised:
        config(**changes)
    assert message in str(raised.value)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    fit(Line(), config(4), batches(), tmp_path, say=lambda line: None)
    with pytest.raises(
        InputError, match=r"checkpoints/4 is of other networks: .*layer.* has shape \(4,\), here \(5,\)"
    ):
        fit(Line(width=5), config(8), batches(5), tmp_path, say=lambda line: None)


def test_a_change_of_config_is_said(tmp_path):
    said = []
    fit(Line(), config(4), batches(), tmp_path, say=said.append)
    fit(Line(), config(8), batches(), tmp_path, say=said.append)
    assert "step 4 was made under another config: steps was 4, is 8" in said


def test_cost_video_and_profile_are_written(tmp_path):
    def sample(params):
        return np.zeros((8, 16, 32, 3), np.uint8)

    said = []
    watch = Watch(sample=sample, cost=StepCost(tokens=1000, flops=1e9, peak_flops=1e12))
    fit(Line(), config(4, sample_every=2, profile_steps=(1, 2)), batches(), tmp_path, watch=watch, say=said.append)
    assert "tokens/s" in said[0]
    assert "MFU" in said[0]
    assert (tmp_path / "samples" / "step-000002.mp4").stat().st_size > 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(row["mfu"] * row["seconds_per_step"], 1e-3 / jax.device_count(), rtol=1e-6)

"""The loop itself, on a straight line: SIGTERM, losses that are not finite, what is said and written."""

import json
import os
import signal
from dataclasses import dataclass

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.training import Batches, FitConfig, OptimizerConfig, fit

QUIET = OptimizerConfig(learning_rate=0.1, warmup_steps=1)


@dataclass(frozen=True)
class Line:
    """y = a x + b, with noise from the key; from step `breaks_at` on the loss is not a number."""

    breaks_at: int = 1000

    def init(self, key):
        return {"a": jax.random.normal(key, (1, 1)), "b": jnp.zeros(1)}

    def loss(self, params, batch, keys):
        x = batch["x"] + 0.01 * jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys)
        error = jnp.mean(jnp.square(x @ params["a"] + params["b"] - 3 * batch["x"] - 1))
        return jnp.where(batch["x"].max() >= self.breaks_at, jnp.nan, error), {}


class Counting:
    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        return {"x": np.full((1,), index // 4, np.float32)}


def batches():
    return Batches((grain.MapDataset.source(Counting()),), 4)


def config(steps=12, save_every=4):
    return FitConfig(steps=steps, batch_size=4, log_every=1, save_every=save_every, optimizer=QUIET)


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

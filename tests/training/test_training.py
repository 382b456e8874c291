"""The loop and its parts on the micro experiment: falling loss, exact resume, equal on one device and on several."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.model import Model
from spatia_jax.text import train_tokenizer
from spatia_jax.training import FitConfig, OptimizerConfig, fit
from spatia_jax.training.examples import KINDS, build_examples, example_batches, load_examples
from spatia_jax.training.generator import GeneratorObjective
from spatia_jax.training.latents import latent_statistics, normalize_latents
from spatia_jax.training.objectives import AutoencoderObjective, DepthObjective
from spatia_jax.training.sources import crop_batches, depth_batches

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"


@pytest.fixture(scope="module")
def model():
    return Model(load_experiment(CONFIG))


@pytest.fixture(scope="module")
def source(micro_records):
    return micro_records


@pytest.fixture(scope="module")
def examples(model, source, tmp_path_factory):
    """Encoded examples of both kinds, and the tokenizer they were made with."""
    folder = tmp_path_factory.mktemp("examples")
    tokenizer = train_tokenizer([record["caption"] for record in source], 300, folder / "tokenizer.json")
    names = ("autoencoder", "inpainter")
    params = {name: jax.jit(lambda key, n=name: model.init(n, key))(jax.random.key(0, impl="rbg")) for name in names}
    for kind in KINDS:
        build_examples(model, params, source, tokenizer, folder, kind, shard_size=2, say=lambda line: None)
    return folder, tokenizer, params


def steps(count, rate=3e-3, save_every=1000):
    optimizer = OptimizerConfig(learning_rate=rate)
    return FitConfig(steps=count, batch_size=2, log_every=1, save_every=save_every, optimizer=optimizer)


def crops(source):
    return crop_batches(source, frames=5, crop=32, batch_size=2, seed=0)


def losses(folder):
    import json

    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_autoencoder_loss_falls(model, source, tmp_path):
    fit(AutoencoderObjective(model), steps(30), crops(source), tmp_path, say=lambda line: None)
    seen = losses(tmp_path)
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


@pytest.mark.slow
def test_depth_loss_falls(model, source, tmp_path):
    fit(DepthObjective(model), steps(30), depth_batches(source, batch_size=2, seed=0), tmp_path, say=lambda line: None)
    seen = losses(tmp_path)
    assert np.mean(seen[-5:]) < 0.8 * np.mean(seen[:5])


@pytest.mark.parametrize("opening_share", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_generator_learns_its_examples(opening_share, model, examples, tmp_path):
    """Measured at the same noise before and after, since the loss of single steps depends on the level drawn."""
    folder, tokenizer, _ = examples
    batches = example_batches(folder, tokenizer, 8, batch_size=2, seed=0, opening_share=opening_share)
    objective, config = GeneratorObjective(model), steps(60)
    loss = jax.jit(lambda params, batch, key: objective.loss(params, batch, key)[0])

    def mean_loss(params):
        return np.mean([loss(params, batches[i], jax.random.split(jax.random.key(i), 2)) for i in range(12)])

    before = mean_loss(jax.jit(objective.init)(jax.random.key(config.seed)))
    after = mean_loss(fit(objective, config, batches, tmp_path, say=lambda line: None).params)
    assert after < 0.8 * before


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(model, source, tmp_path):
    objective, config = AutoencoderObjective(model), steps(6, save_every=2)
    whole = fit(objective, config, crops(source), tmp_path / "whole", say=lambda line: None)

    class Stop(Exception):
        pass

    said = []

    def stop_at_five(line):
        said.append(line)
        if line.startswith("step 5/"):
            raise Stop

    with pytest.raises(Stop):
        fit(objective, config, crops(source), tmp_path / "cut", say=stop_at_five)
    resumed = fit(objective, config, crops(source), tmp_path / "cut", say=said.append)
    assert "resuming from step 4" in said
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_batches_depend_on_the_step_alone(source):
    once, again = crops(source), crops(source)
    for step in (7, 0, 3):
        np.testing.assert_array_equal(once[step]["frames"], again[step]["frames"])
    assert not np.array_equal(once[0]["frames"], once[1]["frames"])


def test_building_examples_goes_on_where_it_stopped(model, source, examples, tmp_path):
    folder, tokenizer, params = examples
    whole = load_examples(folder, "continuing")
    said = []
    (tmp_path / "continuing-00000.npz").write_bytes((folder / "continuing-00000.npz").read_bytes())
    build_examples(model, params, source, tokenizer, tmp_path, "continuing", shard_size=2, say=said.append)
    assert len(said) == 1
    jax.tree.map(np.testing.assert_array_equal, load_examples(tmp_path, "continuing"), whole)


@pytest.mark.slow
def test_normalised_latents_decode_to_the_same_video(model, source):
    params = jax.jit(lambda key: model.init("autoencoder", key))(jax.random.key(1))
    videos = np.stack([record["frames"][:5] for record in source])
    folded = normalize_latents(model, params, videos)
    mean, std = latent_statistics(model, folded, videos)
    np.testing.assert_allclose(mean, 0, atol=1e-3)
    np.testing.assert_allclose(np.mean(np.square(std)), 1, atol=1e-3)

    before = latent_statistics(model, params, videos)[1]
    np.testing.assert_allclose(std / std[0], before / before[0], rtol=1e-3)  # proportions are kept

    def round_trip(p):
        p = {"autoencoder": p}
        return model.decode(p, model.encode(p, videos[:1] / 127.5 - 1.0))

    np.testing.assert_allclose(round_trip(params), round_trip(folded), atol=2e-5)


@pytest.mark.slow
def test_dropping_the_map_hides_it(model, examples):
    folder, tokenizer, _ = examples
    config = dataclasses.replace(
        model.config, training=dataclasses.replace(model.config.training, drop_map=1.0, drop_text=0.0)
    )
    batch = example_batches(folder, tokenizer, 8, batch_size=2, seed=0, opening_share=1.0)[0]
    other = batch | {"control": batch["control"] + 1}
    for objective, hidden in ((GeneratorObjective(Model(config)), True), (GeneratorObjective(model), False)):
        params = jax.tree.map(
            lambda x: x + 0.1, jax.jit(objective.init)(jax.random.key(0))
        )  # away from zero initialisation
        keys = jax.random.split(jax.random.key(5), 2)
        same = float(objective.loss(params, batch, keys)[0]) == float(objective.loss(params, other, keys)[0])
        assert same == hidden


@pytest.mark.slow
def test_two_devices_give_the_gradients_of_one(tmp_path):
    """In a process of its own, since the number of CPU devices is fixed when JAX starts."""
    program = f"""
import sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import numpy as np
from pathlib import Path
from spatia_jax.config import load_experiment
from spatia_jax.data.procedural import ProceduralSource
from spatia_jax.model import Model
from spatia_jax.training import FitConfig, fit
from spatia_jax.training.objectives import DepthObjective
from spatia_jax.training.sources import depth_batches
model = Model(load_experiment({str(CONFIG)!r}))
source = [ProceduralSource(model.config.procedural)[0]]
config = FitConfig(steps=3, batch_size=4, log_every=1, save_every=9)
state = fit(DepthObjective(model), config, depth_batches(source, batch_size=4, seed=0), Path(sys.argv[2]))
np.savez(sys.argv[3], *[np.asarray(leaf) for leaf in jax.tree.leaves(state.params)])
"""
    found = []
    for count in (1, 2):
        file = tmp_path / f"{count}.npz"
        subprocess.run([sys.executable, "-c", program, str(count), str(tmp_path / str(count)), str(file)], check=True)
        found.append(np.load(file))
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], atol=2e-5)

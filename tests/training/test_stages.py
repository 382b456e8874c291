"""The two stages of the paper on the micro experiment: what is trained, what is not, and what comes out."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.models.lora import LoraConfig
from spatia_jax.text import Tokenizer, train_tokenizer
from spatia_jax.training.command import parse_args
from spatia_jax.training.examples import as_sequence, clip_batches, cut_clip, make_encoder, start_of
from spatia_jax.training.generator import GeneratorObjective
from spatia_jax.training.options import FitConfig, OptimizerConfig
from spatia_jax.training.paper_stages import check_stage, train_stage
from spatia_jax.weights.bundle import load_network
from spatia_jax.weights.convert import export
from spatia_jax.weights.store import save_params

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "tests" / "configs" / "micro.py"
FIT = FitConfig(
    steps=3, batch_size=2, log_every=1, save_every=3, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1)
)


def with_training(model, **changes):
    training = dataclasses.replace(model.config.training, latents="on_the_fly", **changes)
    return Model(dataclasses.replace(model.config, training=training))


@pytest.fixture(scope="module")
def model():
    """Holes stay black, so that the transformer and the autoencoder are all there is; with a LoRA, as released."""
    config = load_experiment(CONFIG)
    return with_training(
        Model(dataclasses.replace(config, control_fill="black", inpainter=None, lora=LoraConfig(rank=2))),
        stage1=dataclasses.replace(FIT, train_only=("transformer.control",)),
        stage2=dataclasses.replace(FIT, train_only=("lora",)),
        opening_share=0.0,
    )


@pytest.fixture(scope="module")
def source(micro_records):
    return micro_records


@pytest.fixture(scope="module")
def weights(model, source, tmp_path_factory):
    """A folder as `python -m spatia_jax.weights convert` leaves it; away from zeros, so that all layers act."""
    folder = tmp_path_factory.mktemp("start")
    train_tokenizer([record["caption"] for record in source], 300, folder / "tokenizer.json")
    for name in ("autoencoder", "transformer", "text_encoder"):
        params = jax.jit(lambda key, n=name: model.init(n, key))(jax.random.key(0, impl="rbg"))
        save_params(folder / f"{name}.safetensors", jax.tree.map(lambda leaf: np.asarray(leaf) + 0.01, params))
    return folder


@pytest.fixture(scope="module")
def tokenizer(weights):
    return Tokenizer.load(weights)


def sizes(tree):
    return sorted(leaf.shape for leaf in jax.tree.leaves(tree) if leaf.ndim)


def checkpointed(folder):
    """Names of the arrays in a stage's checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder / "checkpoints", item_handlers={"state": ocp.StandardCheckpointHandler()}) as m:
        tree = m.item_metadata(m.latest_step())["state"]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in
            jax.tree_util.tree_flatten_with_path(tree)[0]]  # fmt: skip


@pytest.mark.slow
def test_stage_2_trains_a_lora_alone_which_is_exported(model, source, weights, tokenizer, tmp_path):
    found = train_stage(model, "stage2", source, tokenizer, tmp_path, weights, lambda: source)
    assert set(found) == {"lora"}
    assert all(np.abs(factors.up).max() > 0 for factors in found["lora"].values())  # they start at zero
    names = checkpointed(tmp_path / "stage2")
    assert {name.split(".")[1] for name in names if name.startswith(("params", "ema"))} == {"lora"}
    assert not any("transformer" in name for name in names)

    save_params(tmp_path / "weights" / "lora.safetensors", found["lora"])
    export(tmp_path / "weights", tmp_path / "official", model.config, say=lambda line: None)
    file = next((tmp_path / "official").rglob("*.safetensors"))
    from safetensors.numpy import load_file

    tensors = load_file(file)
    down = tensors["pipe.dit.blocks.1.self_attn.q.lora_A.default.weight"]
    np.testing.assert_array_equal(down, np.asarray(found["lora"]["self_attn.q"].down[1]).T)


@pytest.mark.slow
def test_stage_1_trains_the_control_branch_alone(model, source, weights, tokenizer, tmp_path):
    found = train_stage(model, "stage1", source, tokenizer, tmp_path, weights, lambda: source)
    assert set(found) == {"transformer"}  # whole
    before = load_network(model, weights, "transformer")
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), before, found["transformer"])
    control = same.pop("control")
    assert all(jax.tree.leaves(same))
    assert not any(jax.tree.leaves(control["blocks"]["after_proj"]))


@pytest.mark.slow
def test_stage_2_trains_the_whole_transformer_without_a_lora(model, source, weights, tokenizer, tmp_path):
    """Full fine-tuning, by the line in configs/spatia_5b_stage2.py."""
    given = [str(REPOSITORY / "configs" / "spatia_5b_stage2.py"), "--part", "stage2", "--training.stage2.train-only",
             "transformer", "lora:none"]  # fmt: skip
    settings = parse_args(given).experiment
    assert (settings.lora, settings.training.stage2.train_only) == (None, ("transformer",))

    stage2 = dataclasses.replace(FIT, train_only=settings.training.stage2.train_only)
    whole = with_training(
        Model(dataclasses.replace(model.config, lora=settings.lora)), stage2=stage2, opening_share=0.0
    )
    found = train_stage(whole, "stage2", source, tokenizer, tmp_path, weights, lambda: source)
    assert set(found) == {"transformer"}
    before = load_network(model, weights, "transformer")
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), before, found["transformer"])
    assert not any(jax.tree.leaves((same["blocks"]["self_attn"], same["control"]["blocks"]["after_proj"])))


def test_without_weights_nothing_can_be_frozen(model, weights, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "autoencoder.safetensors").write_bytes((weights / "autoencoder.safetensors").read_bytes())
    with pytest.raises(InputError, match="there must be weights to freeze; say --start DIR"):
        check_stage(model, "stage1", tmp_path, None)
    with pytest.raises(InputError, match=r"no weights of the transformer in .*weights; train it first, or name"):
        check_stage(model, "stage2", tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["opening", "continuing"])
def test_latents_made_in_the_step_are_those_that_are_kept_on_disk(kind, model, source, weights):
    """For the same draw of what the map knows; the cache rounds to float16."""
    from spatia_jax.training.generator import _CONDITIONING

    params = {"autoencoder": load_network(model, weights, "autoencoder")}
    sequences = [as_sequence(record) for record in source[:2]]
    starts = [start_of(kind, i, 13, model.config.clip) for i in range(2)]
    keys = jax.random.split(jax.random.key(3), 2)
    clips = [cut_clip(model, sequence, start, kind) for sequence, start in zip(sequences, starts, strict=True)]
    batch = jax.tree.map(lambda *rows: np.stack(rows), *clips)
    made = jax.jit(GeneratorObjective(model).encode)(params, batch, keys)
    encode = make_encoder(model, kind)
    for row in range(2):
        kept = encode(params, sequences[row], starts[row], jax.random.fold_in(keys[row], _CONDITIONING))
        assert set(kept) == set(made)
        for name in kept:
            np.testing.assert_allclose(made[name][row], kept[name], rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_every_epoch_knows_another_part_of_the_map(model, source, weights, tokenizer):
    params = {"autoencoder": load_network(model, weights, "autoencoder")}
    batch = clip_batches(model, source, tokenizer, batch_size=2, seed=0, opening_share=0.0)[0]["clip"]
    encode = jax.jit(GeneratorObjective(model).encode)
    one, other = (encode(params, batch, jax.random.split(jax.random.key(seed), 2)) for seed in (0, 1))
    np.testing.assert_array_equal(one["video"], other["video"])
    assert jnp.abs(one["control"] - other["control"]).max() > 1e-3

"""A release in its exact layout at small widths: found, checked, converted, loaded, and exported bit for bit."""

from __future__ import annotations

import gc
import itertools
import json
import pkgutil
import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from weights.synthetic_release import SIZES, TOKENIZER, official_tensors, write_release

from spatia_jax.config import load_experiment
from spatia_jax.errors import InputError
from spatia_jax.io.manifest import sha256
from spatia_jax.models.autoencoder import AutoencoderConfig
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.weights import autoencoder, depth, text_encoder, transformer
from spatia_jax.weights.__main__ import inspect
from spatia_jax.weights.convert import EXPORTED, convert, export
from spatia_jax.weights.layouts import ReleasedSizes, check, official_shapes
from spatia_jax.weights.names import recognise
from spatia_jax.weights.record import network_hash, read_record
from spatia_jax.weights.release import find_release
from spatia_jax.weights.store import find_params, load_params, read_arrays
from spatia_jax.weights.streams import assemble

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def official():
    return official_tensors()


@pytest.fixture(scope="session")
def downloads(official, tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("downloads"), official)


@pytest.fixture(scope="session")
def converted(downloads, tmp_path_factory):
    """As safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    convert(downloads, folder, SIZES, format="safetensors")
    return folder


@pytest.fixture(scope="session")
def orbax(downloads, tmp_path_factory):
    """As Orbax folders."""
    folder = tmp_path_factory.mktemp("orbax")
    convert(downloads, folder, SIZES)
    return folder


@pytest.fixture
def copy(downloads, tmp_path):
    """The downloads, to be spoiled."""
    return Path(shutil.copytree(downloads, tmp_path / "copy"))


def test_the_release_has_as_many_tensors_as_the_real_one(official):
    counts = {slot: len(tensors) for slot, tensors in official.items()}
    assert (counts["transformer"], counts["control"], counts["autoencoder"], counts["text_encoder"]) == (
        825,
        236,
        196,
        242,
    )


def test_everything_is_found_wherever_it_lies(downloads, official):
    release = find_release(downloads, SIZES)
    assert set(release.parts) == set(official)
    assert release.tokenizer.name == "tokenizer.json"
    release.require([*official, "tokenizer"], SIZES)
    assert len(release.parts["transformer"].checkpoint.files) == 3


@pytest.mark.parametrize("form", ["converted", "orbax"])
def test_converted_networks_load_as_the_imports_make_them(form, request, official):
    folder = request.getfixturevalue(form)
    states = {
        "transformer": transformer.from_official(SIZES.transformer, official["transformer"], official["control"]),
        "autoencoder": autoencoder.from_official(SIZES.autoencoder, official["autoencoder"]),
        "text_encoder": text_encoder.from_official(SIZES.text_encoder, official["text_encoder"]),
        "depth": depth.from_official(SIZES.depth, official["depth"]),
    }
    for network, state in states.items():
        wanted = nnx.to_pure_dict(state)
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
        loaded = load_params(find_params(folder, network), abstract)
        jax.tree.map(np.testing.assert_array_equal, loaded, wanted)


def test_the_lora_keeps_its_factors(converted, official):
    lora = read_arrays(find_params(converted, "lora"))
    paths = ("self_attn.q", "cross_attn.q", "ffn.up", "ffn.down")
    assert set(lora) == {f"{path}.{side}" for path in paths for side in ("down", "up")}
    b = official["lora"]["pipe.dit.blocks.7.ffn.0.lora_B.default.weight"]
    np.testing.assert_array_equal(lora["ffn.up.up"][7], b.T)


@pytest.mark.parametrize("form", ["converted", "orbax"])
def test_the_round_trip_is_exact(form, request, converted, official, tmp_path):
    export(request.getfixturevalue(form), tmp_path / "out", SIZES)
    for slot, tensors in official.items():
        exported = load_file(tmp_path / "out" / EXPORTED[slot])
        assert set(exported) == set(tensors)
        for name, tensor in tensors.items():
            assert exported[name].dtype == tensor.dtype, name
            np.testing.assert_array_equal(exported[name], tensor)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == TOKENIZER.read_bytes()
    convert(tmp_path / "out", tmp_path / "again", SIZES, format="safetensors")
    for file in converted.glob("*.safetensors"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_bfloat16_rounds_each_value(downloads, converted, tmp_path):
    convert(downloads, tmp_path, SIZES, networks=["autoencoder"], dtype="bfloat16", format="safetensors")
    wide, narrow = (load_file(folder / "autoencoder.safetensors") for folder in (converted, tmp_path))
    for name, tensor in narrow.items():
        np.testing.assert_array_equal(tensor, wide[name].astype(ml_dtypes.bfloat16))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["autoencoder.safetensors", "weights.json"]


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_what_is_done_is_skipped_and_what_changed_is_not(form, copy, official, tmp_path):
    target, said = tmp_path / "weights", []
    networks = ["autoencoder", "lora"]
    convert(copy, target, SIZES, networks=networks, format=form, say=said.append)
    stamps = {name: find_params(target, name).stat().st_mtime_ns for name in networks}
    time.sleep(0.01)
    other = {name: tensor + 1 for name, tensor in official["lora"].items()}
    save_file(other, copy / "Spatia" / "lora_weights_10000.safetensors")
    said.clear()
    convert(copy, target, SIZES, networks=networks, format=form, say=said.append)
    assert len(said) == 2
    assert "autoencoder" in said[0]
    assert "already" in said[0]
    assert find_params(target, "autoencoder").stat().st_mtime_ns == stamps["autoencoder"]
    assert find_params(target, "lora").stat().st_mtime_ns > stamps["lora"]
    # What was damaged is made anew.
    written = find_params(target, "autoencoder")
    whole = {name: array.copy() for name, array in read_arrays(written).items()}
    max([written, *written.rglob("*")], key=lambda path: path.is_file() and path.stat().st_size).write_bytes(b"x")
    convert(copy, target, SIZES, networks=["autoencoder"], format=form)
    for name, array in read_arrays(written).items():
        np.testing.assert_array_equal(array, whole[name])


@pytest.mark.parametrize(("form", "step"), [("orbax", "orbax.assemble"), ("safetensors", "streams._pieces")])
def test_a_conversion_that_dies_goes_on_and_leaves_no_part(form, step, copy, tmp_path, monkeypatch):
    target = tmp_path / "weights"
    name = f"spatia_jax.weights.{step}"
    work, calls = pkgutil.resolve_name(name), itertools.count()

    def dies(*args):
        if next(calls) == 196 + 3:  # the autoencoder is written, and half of the LoRA
            raise RuntimeError("killed")
        return work(*args)

    monkeypatch.setattr(name, dies)
    with pytest.raises(RuntimeError, match="killed"):
        convert(copy, target, SIZES, networks=["autoencoder", "lora"], format=form)
    assert sorted(entry.name for entry in target.iterdir()) == [find_params(target, "autoencoder").name, "weights.json"]
    monkeypatch.undo()
    said = []
    convert(copy, target, SIZES, networks=["autoencoder", "lora"], format=form, say=said.append)
    assert ["already" in line for line in said] == [True, False]


def test_a_network_is_never_whole_in_memory(downloads, tmp_path, monkeypatch):
    """Those of the group before are gone when the next is made: the peak is a parameter or a group, not the network."""
    alive, most = [], 0

    def watched(tensor, dtype):
        nonlocal most
        gc.collect()
        whole = assemble(tensor, dtype)
        alive.append(weakref.ref(whole))
        most = max(most, sum(ref() is not None for ref in alive))
        return whole

    monkeypatch.setattr("spatia_jax.weights.orbax.assemble", watched)
    monkeypatch.setattr("spatia_jax.weights.orbax._TOGETHER", 1)
    convert(downloads, tmp_path, SIZES, networks=["text_encoder"], dtype="float32")
    assert len(alive) == 12
    assert most <= 2


def test_a_network_in_two_formats_is_refused(downloads, orbax, converted, tmp_path):
    shutil.copytree(orbax / "lora", tmp_path / "lora")
    with pytest.raises(InputError, match="lora: holds the lora in another format"):
        convert(downloads, tmp_path, SIZES, networks=["lora"], format="safetensors")
    shutil.copy(converted / "lora.safetensors", tmp_path)
    with pytest.raises(InputError, match=r"holds the lora twice, as lora\.safetensors and as lora/"):
        find_params(tmp_path, "lora")


def test_the_record_knows_the_hashes(orbax):
    record = read_record(orbax)
    assert record["transformer"]["format"] == "orbax"
    assert len(record["transformer"]["inputs"]) == 4  # three shards and the control branch
    assert record["transformer"]["sha256"] == sha256(orbax / "transformer") == network_hash(orbax, "transformer")


def test_all_bad_keys_are_in_one_line(copy, official, tmp_path):
    bad = dict(official["control"])
    del bad["vace_blocks.3.ffn.0.bias"], bad["vace_blocks.7.modulation"]
    bad["vace_blocks.8.modulation"] = bad["vace_blocks.0.modulation"]
    bad["vace_blocks.1.norm3.bias"] = np.zeros(5, np.float32)
    bad["vace_blocks.2.norm3.bias"] = np.zeros(12, np.int8)
    save_file(bad, copy / "Spatia" / "control_weight_8500.safetensors")
    with pytest.raises(InputError) as error:
        convert(copy, tmp_path / "weights", SIZES)
    line = str(error.value)
    for part in (
        "missing vace_blocks.3.ffn.0.bias", "missing vace_blocks.7.modulation", "unknown vace_blocks.8.modulation",
        "vace_blocks.1.norm3.bias has shape (5,), not (12,)", "vace_blocks.2.norm3.bias is int8",
    ):  # fmt: skip
        assert part in line
    assert "\n" not in line
    assert not (tmp_path / "weights").exists()  # nothing was written


def test_a_14b_checkpoint_is_named(copy, tmp_path):
    wan = copy / "Wan2.2-TI2V-5B"
    for file in wan.glob("diffusion*"):
        file.unlink()
    big = {"patch_embedding.weight": np.zeros((5120, 4, 1, 2, 2), np.float16)}
    big["blocks.0.self_attn.q.weight"] = np.zeros((5120, 1), np.float16)
    (wan / "high_noise_model").mkdir()
    save_file(big, wan / "high_noise_model" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match="another size .Wan 14B, width 5120.; the config asks for width 12"):
        convert(copy, tmp_path / "weights", SIZES)


def test_sizes_are_named_for_the_released_config():
    found = {"conv2.weight": np.zeros((16, 16, 1, 1, 1)), "decoder.conv1.weight": np.zeros((1, 1))}
    assert "Wan2.1 autoencoder" in check(recognise(found), found, ReleasedSizes())[0]
    found = {"patch_embedding.weight": np.zeros((1536, 1)), "blocks.0.self_attn.q.weight": np.zeros((1, 1))}
    assert (
        "Wan 1.3B, width 1536); the config asks for Wan2.2-TI2V-5B"
        in check(recognise(found), found, ReleasedSizes())[0]
    )


def test_the_wrong_file_in_a_slot(copy):
    shutil.copy(copy / "Spatia" / "lora_weights_10000.safetensors", copy / "Spatia" / "control_weight_8500.safetensors")
    with pytest.raises(InputError, match="is named like the control .* but holds the lora"):
        find_release(copy, SIZES)


def test_a_broken_file_with_a_released_name_is_refused_and_another_passed_over(copy):
    (copy / "upscaler.gguf").write_bytes(b"GGUF")
    release = find_release(copy, SIZES)
    assert [path.name for path in release.passed_over] == ["upscaler.gguf"]
    (copy / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"Wan2\.2_VAE\.pth: a git-LFS pointer"):
        find_release(copy, SIZES)


def test_a_network_that_is_there_twice(copy):
    shutil.copy(copy / "Spatia" / "lora_weights_10000.safetensors", copy / "Spatia" / "lora_weights_9000.safetensors")
    with pytest.raises(InputError, match="the lora is there twice"):
        find_release(copy, SIZES)


def test_what_is_missing_is_said_with_its_source(copy, tmp_path):
    (copy / "Spatia" / "control_weight_8500.safetensors").unlink()
    (copy / "Wan2.2-TI2V-5B" / "google" / "umt5-xxl" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"missing: control .*Jinjing713/Spatia.; tokenizer .*tokenizer\.json"):
        convert(copy, tmp_path / "weights", SIZES)


def test_inspect_says_what_is_there(downloads, capsys):
    inspect(downloads, SIZES)
    said = capsys.readouterr().out
    assert "825 tensors in 3 file(s)" in said
    assert "transformer, official names" in said
    assert "missing" not in said
    with pytest.raises(InputError, match="another size .Wan2.2-TI2V-5B|width 12"):
        inspect(downloads / "Spatia" / "control_weight_8500.safetensors", ReleasedSizes())


def test_weights_that_do_not_fit_are_not_exported(converted, tmp_path):
    narrower = replace(SIZES, autoencoder=AutoencoderConfig(dim=8, dec_dim=4, z_dim=4))
    with pytest.raises(InputError, match="weights of the autoencoder do not fit the config: .*has shape"):
        export(converted, tmp_path / "out", narrower)


DIFFUSERS = {
    "condition_embedder.time_embedder.linear_1.weight": "time_embedding.0.weight",
    "condition_embedder.text_embedder.linear_2.bias": "text_embedding.2.bias",
    "condition_embedder.time_proj.weight": "time_projection.1.weight",
    "scale_shift_table": "head.modulation",
    "proj_out.weight": "head.head.weight",
    "patch_embedding.weight": "patch_embedding.weight",
    "blocks.0.attn1.to_q.weight": "blocks.0.self_attn.q.weight",
    "blocks.12.attn1.to_out.0.bias": "blocks.12.self_attn.o.bias",
    "blocks.12.attn1.norm_k.weight": "blocks.12.self_attn.norm_k.weight",
    "blocks.12.attn2.to_v.weight": "blocks.12.cross_attn.v.weight",
    "blocks.12.norm2.bias": "blocks.12.norm3.bias",
    "blocks.12.ffn.net.0.proj.weight": "blocks.12.ffn.0.weight",
    "blocks.12.ffn.net.2.bias": "blocks.12.ffn.2.bias",
    "blocks.12.scale_shift_table": "blocks.12.modulation",
}
AUTOENCODER_KL_WAN = {
    "quant_conv.weight": "conv1.weight",
    "post_quant_conv.weight": "conv2.weight",
    "encoder.conv_in.weight": "encoder.conv1.weight",
    "decoder.conv_in.weight": "decoder.conv1.weight",
    "decoder.norm_out.gamma": "decoder.head.0.gamma",
    "encoder.conv_out.bias": "encoder.head.2.bias",
    "encoder.mid_block.resnets.1.conv2.bias": "encoder.middle.2.residual.6.bias",
    "decoder.mid_block.attentions.0.to_qkv.weight": "decoder.middle.1.to_qkv.weight",
    "encoder.down_blocks.1.resnets.0.conv_shortcut.bias": "encoder.downsamples.1.downsamples.0.shortcut.bias",
    "encoder.down_blocks.1.resnets.1.norm2.gamma": "encoder.downsamples.1.downsamples.1.residual.3.gamma",
    "encoder.down_blocks.1.downsampler.resample.1.weight": "encoder.downsamples.1.downsamples.2.resample.1.weight",
    "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.upsamples.0.upsamples.2.residual.2.weight",
    "decoder.up_blocks.0.upsampler.time_conv.bias": "decoder.upsamples.0.upsamples.3.time_conv.bias",
}
UMT5 = {
    "shared.weight": "token_embedding.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "blocks.0.attn.q.weight",
    "encoder.block.23.layer.0.SelfAttention.relative_attention_bias.weight": "blocks.23.pos_embedding.embedding.weight",
    "encoder.block.23.layer.0.layer_norm.weight": "blocks.23.norm1.weight",
    "encoder.block.23.layer.1.DenseReluDense.wi_0.weight": "blocks.23.ffn.gate.0.weight",
    "encoder.block.23.layer.1.DenseReluDense.wi_1.weight": "blocks.23.ffn.fc1.weight",
    "encoder.block.23.layer.1.DenseReluDense.wo.weight": "blocks.23.ffn.fc2.weight",
    "encoder.block.23.layer.1.layer_norm.weight": "blocks.23.norm2.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
}


@pytest.mark.parametrize(
    ("slot", "pairs"), [("transformer", DIFFUSERS), ("autoencoder", AUTOENCODER_KL_WAN), ("text_encoder", UMT5)]
)
def test_names_of_other_libraries(slot, pairs):
    naming = recognise([*pairs, *(["encoder.embed_tokens.weight"] if slot == "text_encoder" else [])])
    assert naming.slot == slot
    assert naming.form in ("diffusers", "transformers")
    assert naming.stored == {official: stored for stored, official in pairs.items()}
    assert set(naming.stored) <= set(official_shapes(slot, ReleasedSizes()))


def test_lora_names_without_default(official):
    short = {name.replace(".default", ""): tensor for name, tensor in official["lora"].items()}
    naming = recognise(short)
    assert set(naming.stored) == set(official["lora"])
    assert check(naming, short, SIZES) == []
    del short["pipe.dit.blocks.4.ffn.0.lora_B.weight"]
    assert check(recognise(short), short, SIZES) == ["missing pipe.dit.blocks.4.ffn.0.lora_B.default.weight"]


@pytest.mark.parametrize("sizes", [ReleasedSizes(), load_experiment(ROOT / "configs" / "spatia_5b.py")])
def test_the_released_keys_fit_the_released_sizes_golden(golden_dir, sizes):
    keys = json.loads((golden_dir / "official_keys.json").read_text())
    assert [len(keys[name]) for name in ("dit", "vace", "vae", "umt5")] == [825, 236, 196, 242]
    for name, slot in {"dit": "transformer", "vace": "control", "vae": "autoencoder", "umt5": "text_encoder"}.items():
        tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys[name].items()}
        naming = recognise(tensors)
        assert naming.slot == slot
        assert check(naming, tensors, sizes) == []


def test_the_official_modules_own_weights_come_back_golden(golden_dir, tmp_path):
    config = json.loads((golden_dir / "dit_config.json").read_text())
    dit, vace = config["dit"], config["vace"]
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim", "freq_dim")
    sizes = replace(
        SIZES,
        transformer=TransformerConfig(
            **{name: dit[name] for name in names},
            control_layers=tuple(vace["vace_layers"]),
            control_in_dim=vace["vace_in_dim"],
        ),
    )
    files = {"dit": "transformer", "vace": "control", "lora": "lora"}
    (tmp_path / "in").mkdir()
    for name in files:
        shutil.copy(golden_dir / f"{name}.safetensors", tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "weights", sizes, networks=["transformer", "lora"])
    export(tmp_path / "weights", tmp_path / "out", sizes)
    for name, slot in files.items():
        wanted, exported = load_file(golden_dir / f"{name}.safetensors"), load_file(tmp_path / "out" / EXPORTED[slot])
        assert set(exported) == set(wanted)
        for key, tensor in wanted.items():
            np.testing.assert_array_equal(exported[key], tensor)

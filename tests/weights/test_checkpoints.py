"""Checkpoints on disk: whole ones are views of their files, others are refused in one line that says why."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from weights.torch_zip import write_pth

from spatia_jax.errors import InputError
from spatia_jax.weights.checkpoints import open_checkpoint
from spatia_jax.weights.streams import BFLOAT16, Stacked, write_safetensors


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=(5,)).astype(ml_dtypes.bfloat16),
        "c": rng.normal(size=(2, 2, 2)).astype(np.float16),
    }


def shards(folder, tensors, index=True):
    names = [f"model-{i + 1:05d}-of-{len(tensors):05d}.safetensors" for i in range(len(tensors))]
    folder.mkdir(exist_ok=True)
    for file, (name, tensor) in zip(names, tensors.items(), strict=True):
        save_file({name: tensor}, folder / file)
    if index:
        weight_map = dict(zip(tensors, names, strict=True))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return [folder / name for name in names]


def assert_same(checkpoint, tensors):
    assert set(checkpoint) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint[name].dtype == tensor.dtype
        np.testing.assert_array_equal(checkpoint[name], tensor)
        assert not checkpoint[name].flags.writeable


@pytest.mark.parametrize("form", ["safetensors", "pth", "index", "folder", "no index", "one shard"])
def test_all_forms_hold_the_same(tmp_path, tensors, form):
    match form:
        case "safetensors":
            save_file(tensors, path := tmp_path / "a.safetensors")
        case "pth":
            write_pth(path := tmp_path / "a.pth", tensors)
        case "index":
            shards(tmp_path, tensors)
            path = tmp_path / "model.safetensors.index.json"
        case "folder" | "no index":
            shards(tmp_path, tensors, index=form == "folder")
            path = tmp_path
        case "one shard":
            path = shards(tmp_path, tensors)[1]
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, tensors)
    assert checkpoint.nbytes == 48 + 10 + 16
    assert checkpoint.dtypes() == {"float32": 1, "bfloat16": 1, "float16": 1}
    assert len(checkpoint.files) == (1 if form in ("safetensors", "pth") else 3)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path, tensors, index):
    files = shards(tmp_path, tensors, index)
    files[1].unlink()
    with pytest.raises(InputError, match="1 of 3 shards are missing: model-00002-of-00003.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [4, 20, -1])
def test_a_shard_cut_short_is_named(tmp_path, tensors, kept):
    shard = shards(tmp_path, tensors)[1]
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"{shard.name}: (cut short|not a safetensors)") as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_index_and_shards_of_different_downloads(tmp_path, tensors):
    files = shards(tmp_path, tensors)
    save_file({"other": tensors["a"]}, files[0])
    with pytest.raises(InputError, match="first 'a' in model-00001"):
        open_checkpoint(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(InputError, match="outside its folder"):
        open_checkpoint(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 9999\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.gguf", b"GGUF\x03\0\0\0", "GGUF files .* unsupported"),
        ("a.safetensors", b"GGUF\x03\0\0\0", "GGUF files .* unsupported"),
        ("a.safetensors", POINTER, "git-LFS pointer"),
        ("a.pth", POINTER, "git-LFS pointer"),
        ("x.safetensors.index.json", POINTER, "git-LFS pointer"),
        ("a.safetensors", b"<!DOCTYPE html><html>", "a web page"),
        ("a.safetensors", b"", "is empty"),
        ("a.safetensors", b"Entry not found", "not a safetensors file"),
        ("a.pth", b"Entry not found", "not a file that torch.save wrote"),
        ("a.safetensors", struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        open_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_fp8_is_unsupported(tmp_path, kind):
    header = json.dumps({"w": {"dtype": kind, "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(InputError, match="fp8 tensors .* unsupported"):
        open_checkpoint(tmp_path)


def test_several_checkpoints_in_a_folder(tmp_path, tensors):
    for name in ("a", "b"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"found: a\.safetensors, b\.safetensors"):
        open_checkpoint(tmp_path)


def test_streamed_files_are_what_the_library_writes(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr("spatia_jax.weights.streams.PIECE", 16)  # several pieces a tensor
    stack = Stacked((tensors["a"].T, tensors["a"].T + 1))
    write_safetensors(tmp_path / "a.safetensors", {**tensors, "stack": stack, "scalar": np.float32(3).reshape(())})
    read = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read.pop("stack"), np.stack(stack.layers))
    assert read.pop("scalar") == 3
    assert_same({name: _frozen(tensor) for name, tensor in read.items()}, tensors)


def test_narrowing_rounds_to_nearest_even(tmp_path):
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1e-40, np.inf], np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"a": values}, BFLOAT16)
    read = load_file(tmp_path / "a.safetensors")["a"]
    np.testing.assert_array_equal(read[:2].astype(np.float32), [1, 1 + 4 * 2**-8])
    np.testing.assert_array_equal(read, values.astype(ml_dtypes.bfloat16))


def _frozen(array):
    array.flags.writeable = False
    return array

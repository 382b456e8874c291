"""Encoding texts once: the same bits from the cache, no text encoder when all is in it, no trust in broken files."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.sampling import texts
from spatia_jax.sampling.texts import encode_texts
from spatia_jax.text import train_tokenizer
from spatia_jax.weights.record import write_record
from spatia_jax.weights.store import save_params

TEXTS = ["a red sofa", "", "a green lamp", "a red sofa"]


@pytest.fixture(scope="module")
def model(micro_config):
    return Model(micro_config)


@pytest.fixture
def weights(model, tmp_path):
    """A folder with a text encoder and a tokenizer, and nothing else."""
    folder = tmp_path / "weights"
    params = jax.jit(lambda key: model.init("text_encoder", key))(jax.random.key(0, impl="rbg"))
    save_params(folder / "text_encoder.safetensors", params)
    train_tokenizer(["a red sofa and a green lamp"], 300, folder / "tokenizer.json")
    return folder


@pytest.fixture
def loads(monkeypatch):
    """Counts how often a text encoder is loaded."""
    count, load = [], texts.load_network
    monkeypatch.setattr(texts, "load_network", lambda *args, **options: count.append(args[2]) or load(*args, **options))
    return count


def same(a, b):
    assert a.keys() == b.keys()
    for text in a:
        np.testing.assert_array_equal(a[text], b[text])
        assert a[text].dtype == b[text].dtype


def test_the_cache_changes_no_bit_and_spares_the_text_encoder(model, weights, loads, tmp_path):
    cache = tmp_path / "cache"
    plain = encode_texts(model, weights, TEXTS)
    assert list(plain) == ["a red sofa", "", "a green lamp"]
    assert plain[""].shape == (model.config.clip.text_length, model.config.text_encoder.dim)
    same(encode_texts(model, weights, TEXTS, cache=cache), plain)
    assert len(loads) == 2
    same(encode_texts(model, weights, TEXTS, cache=cache), plain)
    assert len(loads) == 2
    assert len(list(cache.iterdir())) == 3
    encode_texts(model, weights, [*TEXTS, "a new one"], cache=cache)
    assert len(loads) == 3


def test_with_a_recorded_hash_the_text_encoder_may_be_gone(model, weights, tmp_path):
    write_record(weights, {"text_encoder": {"sha256": "1234"}})
    kept = encode_texts(model, weights, TEXTS, cache=tmp_path / "cache")
    (weights / "text_encoder.safetensors").unlink()
    same(encode_texts(model, weights, TEXTS, cache=tmp_path / "cache"), kept)
    with pytest.raises(InputError, match="no weights of the text_encoder"):
        encode_texts(model, weights, ["another"], cache=tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "not a file of ours", "another shape"])
def test_a_broken_file_is_made_anew(damage, model, weights, loads, tmp_path):
    cache = tmp_path / "cache"
    kept = encode_texts(model, weights, ["a red sofa"], cache=cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(whole[: len(whole) // 2])
        case "emptied":
            file.write_bytes(b"")
        case "flipped":
            file.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
        case "not a file of ours":
            file.write_text("hello")
        case "another shape":
            np.savez(file, context=np.zeros((3, 2), np.float32))
    same(encode_texts(model, weights, ["a red sofa"], cache=cache), kept)
    assert len(loads) == 2
    same(encode_texts(model, weights, ["a red sofa"], cache=cache), kept)
    assert len(loads) == 2


def test_whatever_decides_a_context_is_in_its_name(model, weights, tmp_path):
    def name(**change):
        options = {"weights": weights, "text": "a red sofa", "dtype": None, "model": model} | change
        files = texts._cache_files(
            options["model"], options["weights"], [options["text"]], options["dtype"], tmp_path / "cache"
        )
        return files[options["text"]].name

    other_weights, other_tokenizer = (Path(shutil.copytree(weights, tmp_path / str(i))) for i in range(2))
    write_record(other_weights, {"text_encoder": {"sha256": "1234"}})
    train_tokenizer(["something else"], 300, other_tokenizer / "tokenizer.json")
    names = {
        name(), name(text="a red  lamp"), name(dtype="bfloat16"), name(weights=other_weights),
        name(weights=other_tokenizer),
    }  # fmt: skip
    assert len(names) == 5
    assert name(text=" a red \n sofa") == name(dtype="float32") == name()

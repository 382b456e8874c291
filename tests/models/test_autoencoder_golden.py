"""Parity of the autoencoder with the official modules (golden outputs)."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from spatia_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from spatia_jax.weights.autoencoder import from_official, official_shapes, to_official

MAX_ERROR = 5e-4
RELATIVE_ERROR = 3e-5


@pytest.fixture(scope="module")
def golden(golden_dir):
    sizes = json.loads((golden_dir / "vae_config.json").read_text())
    sizes["temporal_downsample"] = tuple(sizes.pop("temperal_downsample"))
    sizes["dim_mult"] = tuple(sizes["dim_mult"])
    config = AutoencoderConfig(**sizes)
    tensors = load_file(golden_dir / "vae.safetensors")
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0))))
    return config, tensors, nnx.merge(graphdef, from_official(config, tensors)), np.load(golden_dir / "vae.npz")


def assert_close(value, expected):
    error = np.abs(value - expected)
    relative = np.linalg.norm(error) / np.linalg.norm(expected)
    assert value.shape == expected.shape
    assert error.max() <= MAX_ERROR and relative <= RELATIVE_ERROR, (error.max(), relative)


def lengths(arrays) -> list[str]:
    return [name.removeprefix("video_") for name in arrays.files if name.startswith("video_")]


@pytest.mark.parametrize("form", ["whole", "streaming"])
def test_encode_and_decode_golden(golden, form):
    _, _, autoencoder, arrays = golden
    whole = form == "whole"
    encode = jax.jit(autoencoder.encode if whole else autoencoder.encode_streaming)
    decode = jax.jit(autoencoder.decode if whole else autoencoder.decode_streaming)
    assert lengths(arrays)
    for length in lengths(arrays):
        video, latents, decoded = (
            np.moveaxis(arrays[f"{name}_{length}"], 1, -1) for name in ("video", "latent", "decoded")
        )
        assert_close(np.asarray(encode(video)), latents)
        assert_close(np.asarray(decode(latents)), decoded)


def test_official_tensors_golden_round_trip(golden):
    config, tensors, autoencoder, _ = golden
    back = to_official(config, nnx.state(autoencoder))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_full_size_maps_onto_released_keys_golden(golden_dir):
    released = json.loads((golden_dir / "official_keys.json").read_text())["vae"]
    assert official_shapes(AutoencoderConfig()) == {name: tuple(shape) for name, shape in released.items()}

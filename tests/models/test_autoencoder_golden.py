"""Parity of the autoencoder with the official modules (golden outputs)."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
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
    params = jax.tree.map(jnp.asarray, from_official(config, tensors))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0))))
    return config, tensors, nnx.merge(graphdef, params), np.load(golden_dir / "vae.npz")


def assert_close(value, expected):
    error = np.abs(value - expected)
    relative = np.linalg.norm(error) / np.linalg.norm(expected)
    assert value.shape == expected.shape
    assert error.max() <= MAX_ERROR
    assert relative <= RELATIVE_ERROR


def lengths(arrays) -> list[str]:
    return [name.removeprefix("video_") for name in arrays.files if name.startswith("video_")]


def clips(arrays):
    """(video, latents, decoded) of every length, shortest first, channels last."""
    lengths = sorted(int(name.removeprefix("video_")) for name in arrays.files if name.startswith("video_"))
    return [
        [np.moveaxis(arrays[f"{name}_{length}"], 1, -1) for name in ("video", "latent", "decoded")]
        for length in lengths
    ]


def test_encode_and_decode_golden(golden):
    _, _, autoencoder, arrays = golden
    assert clips(arrays)
    for video, latents, decoded in clips(arrays):
        assert_close(np.asarray(jax.jit(autoencoder.encode)(video)), latents)
        assert_close(np.asarray(jax.jit(autoencoder.decode)(latents)), decoded)


def test_streaming_golden(golden):
    _, _, autoencoder, arrays = golden
    video, latents, decoded = clips(arrays)[-1]
    assert_close(np.asarray(jax.jit(autoencoder.encode_streaming)(video)), latents)
    assert_close(np.asarray(jax.jit(autoencoder.decode_streaming)(latents)), decoded)


def test_official_tensors_golden_round_trip(golden):
    config, tensors, autoencoder, _ = golden
    back = to_official(config, nnx.state(autoencoder))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_full_size_maps_onto_released_keys_golden(golden_dir):
    released = json.loads((golden_dir / "official_keys.json").read_text())["vae"]
    assert official_shapes(AutoencoderConfig()) == {name: tuple(shape) for name, shape in released.items()}

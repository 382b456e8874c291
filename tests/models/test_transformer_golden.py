"""The transformer against the official modules: same weights, same inputs, same outputs, in float32."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from spatia_jax.models.lora import merge
from spatia_jax.models.transformer import TransformerConfig, VideoTransformer
from spatia_jax.weights.lora import lora_from_official, lora_to_official
from spatia_jax.weights.transformer import abstract_official, from_official, to_official

MAX_ABS, RELATIVE_L2 = 5e-4, 3e-5


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def assert_close(ours, official):
    ours, official = np.asarray(ours), channels_last(official)
    assert ours.shape == official.shape
    assert np.abs(ours - official).max() <= MAX_ABS
    assert np.linalg.norm(ours - official) <= RELATIVE_L2 * np.linalg.norm(official)


@pytest.fixture(scope="module")
def golden(golden_dir):
    sizes = json.loads((golden_dir / "dit_config.json").read_text())
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim", "freq_dim", "eps")
    config = TransformerConfig(
        **{name: sizes["dit"][name] for name in names},
        patch_size=tuple(sizes["dit"]["patch_size"]),
        control_layers=tuple(sizes["vace"]["vace_layers"]),
        control_in_dim=sizes["vace"]["vace_in_dim"],
    )
    dit, control = load_file(golden_dir / "dit.safetensors"), load_file(golden_dir / "vace.safetensors")
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0))))
    apply = jax.jit(
        lambda params, *args, **kwargs: nnx.merge(graphdef, params)(*args, **kwargs), static_argnames="num_references"
    )
    return config, dit, control, from_official(config, dit, control), apply


def test_golden_opening_clip(golden, golden_dir):
    _, _, _, params, apply = golden
    data = np.load(golden_dir / "dit_first_round.npz")
    latents, control = channels_last(data["latents"]), channels_last(data["vace_context"])
    timesteps = np.repeat(data["timestep"][:, None], latents.shape[1], axis=1)
    timesteps[:, 0] = 0  # the input image is clean
    inputs = (latents, timesteps, data["context"])
    assert_close(apply(params, *inputs, control=control), data["out"])
    assert_close(apply(params, *inputs), data["out_no_control"])
    assert_close(apply(params, *inputs, control=control, control_scale=0.5), data["out_scale_half"])


@pytest.mark.parametrize("with_lora", [False, True])
def test_golden_continuing_clip(golden, golden_dir, with_lora):
    config, _, _, params, apply = golden
    data = np.load(golden_dir / "dit_history_round.npz")
    expected = data
    if with_lora:
        expected = np.load(golden_dir / "dit_history_round_lora.npz")
        params = merge(params, lora_from_official(config, load_file(golden_dir / "lora.safetensors")))
    out = apply(
        params,
        channels_last(data["latents"]),
        data["timestep"][None],
        data["context"],
        control=channels_last(data["vace_context"]),
        num_references=int(data["num_ref_frames"]),
    )
    assert_close(out, expected["out"])


def test_golden_weights_round_trip_exactly(golden, golden_dir):
    config, dit, control, params, _ = golden
    for ours, official in zip(to_official(config, params), (dit, control), strict=True):
        assert ours.keys() == official.keys()
        for name in official:
            np.testing.assert_array_equal(ours[name], official[name], err_msg=name)
    lora = load_file(golden_dir / "lora.safetensors")
    again = lora_to_official(lora_from_official(config, lora))
    assert again.keys() == lora.keys()
    for name in lora:
        np.testing.assert_array_equal(again[name], lora[name], err_msg=name)


def test_golden_full_size_keys_map_one_to_one(golden_dir):
    """The default configuration names every tensor of the released checkpoints, and no other, with its shape."""
    released = json.loads((golden_dir / "official_keys.json").read_text())
    config = TransformerConfig()
    for ours, theirs in zip(abstract_official(config), (released["dit"], released["vace"]), strict=True):
        assert {name: list(tensor.shape) for name, tensor in ours.items()} == theirs
    tensors = abstract_official(config)
    params = jax.eval_shape(lambda dit, control: from_official(config, dit, control), *tensors)
    expected = jax.eval_shape(lambda: nnx.state(VideoTransformer(config, rngs=nnx.Rngs(0))))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)

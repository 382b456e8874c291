"""UMT5: parity with the official encoder, its names, its masks, and its positions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from spatia_jax.errors import InputError
from spatia_jax.models.text_encoder import TextEncoder, TextEncoderConfig, position_buckets
from spatia_jax.weights.text_encoder import abstract_params, from_official, to_official

SMALL = TextEncoderConfig(vocab_size=50, dim=16, attention_dim=24, ffn_dim=32, num_heads=4, num_layers=2)


@pytest.fixture(scope="module")
def network():
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: TextEncoder(SMALL, rngs=nnx.Rngs(0))))
    draw = jax.jit(lambda key: nnx.state(TextEncoder(SMALL, rngs=nnx.Rngs(key))))
    return graphdef, draw(jax.random.key(0, impl="rbg"))


@pytest.fixture(scope="module")
def official(golden_dir):
    sizes = json.loads((golden_dir / "umt5_config.json").read_text())
    config = TextEncoderConfig(
        vocab_size=sizes["vocab"],
        dim=sizes["dim"],
        attention_dim=sizes["dim_attn"],
        ffn_dim=sizes["dim_ffn"],
        num_heads=sizes["num_heads"],
        num_layers=sizes["num_layers"],
        num_buckets=sizes["num_buckets"],
    )
    return config, load_file(golden_dir / "umt5.safetensors")


def run(graphdef, params, ids, mask):
    return jax.jit(lambda params: nnx.merge(graphdef, params)(ids, mask))(params)


def test_golden_output(official, golden_dir):
    config, tensors = official
    arrays = np.load(golden_dir / "umt5.npz")
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: TextEncoder(config, rngs=nnx.Rngs(0))))
    mask = arrays["mask"] > 0
    out = np.asarray(run(graphdef, from_official(config, tensors), arrays["ids"].astype(np.int32), mask))
    assert np.abs(out - arrays["out"]).max() <= 5e-4
    assert np.linalg.norm(out - arrays["out"]) <= 3e-5 * np.linalg.norm(arrays["out"])
    assert np.all(out[~mask] == 0)


def test_golden_tensors_round_trip_exactly(official):
    config, tensors = official
    back = to_official(config, from_official(config, tensors))
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)


def test_golden_names_and_shapes_of_the_released_file(golden_dir):
    released = json.loads((golden_dir / "official_keys.json").read_text())["umt5"]
    config = TextEncoderConfig()
    exported = jax.eval_shape(lambda params: to_official(config, params), abstract_params(config))
    assert {key: list(tensor.shape) for key, tensor in exported.items()} == released
    imported = jax.eval_shape(lambda tensors: from_official(config, tensors), exported)
    expected = abstract_params(config)
    assert jax.tree.map(jnp.shape, imported) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.attn.k.weight"), "missing"),
        (lambda t: t.update(extra=np.zeros(2)), "first 'extra'"),
        (lambda t: t.update({"norm.weight": np.zeros(3)}), "shape"),
    ],
)
def test_wrong_tensors_are_refused_in_one_line(network, change, message):
    tensors = to_official(SMALL, network[1])
    change(tensors)
    with pytest.raises(InputError, match=message):
        from_official(SMALL, tensors)


def test_padding_neither_speaks_nor_answers(network):
    ids = jax.random.randint(jax.random.key(0), (2, 9), 0, SMALL.vocab_size)
    mask = jnp.arange(9) < jnp.array([[4], [9]])
    out = run(*network, ids, mask)
    other_padding = run(*network, jnp.where(mask, ids, 7), mask)
    alone = run(*network, ids[:1, :4], mask[:1, :4])
    np.testing.assert_array_equal(out, other_padding)
    np.testing.assert_allclose(out[0, :4], alone[0], rtol=1e-4, atol=1e-5)
    assert np.all(out[0, 4:] == 0)
    assert np.all(np.abs(out[1]).max(axis=-1) > 0)


def test_order_of_words_matters_through_the_position_tables_alone(network):
    graphdef, params = network
    ids, mask = jnp.array([[3, 8, 5, 1]]), jnp.ones((1, 4), bool)
    turned = ids[:, ::-1]
    assert np.abs(run(graphdef, params, ids, mask) - run(graphdef, params, turned, mask)[:, ::-1]).max() > 1e-3
    flat = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if "position_bias" in jax.tree_util.keystr(path) else leaf, params
    )
    np.testing.assert_allclose(
        run(graphdef, flat, ids, mask), run(graphdef, flat, turned, mask)[:, ::-1], rtol=1e-4, atol=1e-5
    )


def test_buckets_have_exact_edges():
    """32 buckets to distance 128: 0..7 exact, then bucket 8 + k starts at 8 * 2^(k / 2), i.e. d^2 >= 64 * 2^k."""
    buckets = position_buckets(300, 32, 128)
    distance = np.arange(300)
    far = 8 + sum(((distance**2 >= 64 * 2**k).astype(int) for k in range(1, 8)), np.zeros(300, int))
    expected = np.where(distance < 8, distance, far)
    np.testing.assert_array_equal(buckets[:, 0], expected)  # keys before the query
    np.testing.assert_array_equal(buckets[0, 1:], 16 + expected[1:])  # keys after it


def test_bfloat16_stays_near_float32(network):
    ids, mask = jax.random.randint(jax.random.key(1), (1, 12), 0, SMALL.vocab_size), jnp.ones((1, 12), bool)
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    low = nnx.graphdef(nnx.eval_shape(lambda: TextEncoder(config, rngs=nnx.Rngs(0))))
    full, half = run(*network, ids, mask), run(low, network[1], ids, mask)
    assert half.dtype == jnp.float32
    assert np.linalg.norm(half - full) < 0.03 * np.linalg.norm(full)


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match="num_heads"):
        TextEncoderConfig(attention_dim=10, num_heads=4)

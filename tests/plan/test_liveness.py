"""The count of live bytes: exact on small programs, and close to XLA's on the networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from spatia_jax.models import transformer_layers
from spatia_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from spatia_jax.models.transformer import TransformerConfig, VideoTransformer
from spatia_jax.plan.liveness import peak_bytes

X = jax.ShapeDtypeStruct((64, 64), jnp.float32)
SIZE = 64 * 64 * 4


def count(function, *arguments, platform="cpu", **options):
    return peak_bytes(function, *arguments, platform=platform, **options).bytes


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (lambda x: x @ x, 1),
        (lambda x: (x @ x) @ x, 2),
        (lambda x: ((x @ x) @ x) @ x, 2),
        (lambda x: jnp.tanh(x) + 1, 1),  # one fusion
        (lambda x: (jnp.tanh(x) + 1) @ x, 2),  # a product reads arrays
        (lambda x: (x[:32] + x[32:]).T.reshape(64, 32) + 1, 0.5),
        (lambda x: (x @ x, x @ x, x @ x), 3),
        (lambda x: lax.fori_loop(0, 9, lambda _, y: y @ x, x), 2),  # the carry, and the next one
        (lambda x: lax.scan(lambda y, _: (y + 1, y @ x), x, length=5)[1], 5 + 3),  # results; carry, next one, product
        (lambda x: lax.cond(x[0, 0] > 0, lambda: (x @ x) @ x, lambda: x), 2),
        (lambda x: lax.platform_dependent(x, cpu=lambda x: (x @ x) @ x, default=lambda x: x), 2),
        (lambda x: jax.checkpoint(lambda x: (x @ x) @ x)(x), 2),
        (lambda x: (x @ x).at[3].set(0.0) @ x, 2),  # a scatter writes over what is not read again
    ],
)
def test_small_programs(function, arrays):
    assert count(function, X) == pytest.approx(arrays * SIZE, rel=0.01)


def test_the_branch_of_the_platform():
    def function(x):
        return lax.platform_dependent(x, cpu=lambda x: (x @ x) @ x, default=lambda x: x @ x)

    assert count(function, X, platform="cpu") == 2 * SIZE
    assert count(function, X, platform="gpu") == SIZE


def test_a_fused_function_counts_what_it_writes():
    @jax.jit
    def kernel(x):
        return (jnp.repeat(x, 9, axis=0) @ x)[:64]

    assert count(kernel, X) == 18 * SIZE  # the repeated rows and the product
    assert count(kernel, X, fused=["kernel"]) == SIZE


def test_split_arguments_are_gathered_where_they_are_read():
    def function(x, weights):
        return (x @ weights[0]) @ weights[1]

    assert count(function, X, [X, X]) == 2 * SIZE
    assert count(function, X, [X, X], sharded=(False, [True, True])) == 3 * SIZE

    def loop(x, stacked):
        return lax.scan(lambda y, weight: (y @ weight, None), x, stacked)[0]

    stacked = jax.ShapeDtypeStruct((50, 64, 64), jnp.float32)
    assert count(loop, X, stacked) == count(loop, X, stacked, sharded=(False, True)) == 3 * SIZE


def test_the_largest_arrays_are_named():
    peak = peak_bytes(lambda x: jnp.repeat(x @ x, 9, axis=0) @ x, X, platform="cpu")
    assert [buffer.bytes for buffer in peak.buffers] == [9 * SIZE, 9 * SIZE]
    assert peak.buffers[0].name.startswith("float32[64,9,64]")


def xla_bytes(function, *arguments):
    usage = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return usage.temp_size_in_bytes + usage.output_size_in_bytes


def abstract(make):
    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, nnx.to_pure_dict(state)


def transformer(dim, heads, rows, columns):
    config = TransformerConfig(
        dim=dim, ffn_dim=4 * dim, num_heads=heads, num_layers=5, in_dim=16, out_dim=16, text_dim=64, freq_dim=64,
        control_in_dim=32, control_layers=(0, 3),
    )  # fmt: skip
    graph, params = abstract(lambda: VideoTransformer(config, rngs=nnx.Rngs(0)))

    def step(params, latents, timesteps, context, control):
        network = nnx.merge(graph, nnx.State(params))
        return network(latents, timesteps, context, control=control, num_references=2)

    shapes = (1, 10, rows, columns, 16), (1, 10), (1, 32, 64), (1, 8, rows, columns, 32)
    return step, (params, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


@pytest.mark.parametrize("size", [(256, 4, 16, 16), (256, 4, 32, 24), (512, 2, 16, 16)])
def test_transformer_as_xla_counts_it(size):
    step, arguments = transformer(*size)
    assert 0.7 < count(step, *arguments) / xla_bytes(step, *arguments) < 1.3


def test_transformer_with_fused_attention_as_xla_counts_it(monkeypatch):
    @jax.jit
    def attention(queries, keys, values):
        return jax.pure_callback(lambda q, k, v: q, queries, queries, keys, values)  # opaque to XLA as a kernel is

    monkeypatch.setattr(transformer_layers, "attention", attention)
    step, arguments = transformer(256, 4, 32, 24)
    ours = count(step, *arguments, fused=["attention"])
    assert 0.7 < ours / xla_bytes(step, *arguments) < 1.3


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", ["encode", "decode"])
def test_autoencoder_as_xla_counts_it(way, streaming, monkeypatch):
    """With the convolutions of accelerators."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *arguments, cpu, default: default(*arguments))
    config = AutoencoderConfig(dim=16, dec_dim=16, z_dim=16, num_res_blocks=1)
    graph, params = abstract(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
    shape = (1, 13, 128, 96, 3) if way == "encode" else (1, 4, 8, 6, 16)

    def run(params, array):
        return getattr(nnx.merge(graph, nnx.State(params)), way + "_streaming" * streaming)(array)

    arguments = params, jax.ShapeDtypeStruct(shape, jnp.float32)
    assert 0.7 < count(run, *arguments) / xla_bytes(run, *arguments) < 1.3

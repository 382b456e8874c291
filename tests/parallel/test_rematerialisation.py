"""What blocks keep under each policy, counted without running them, and that nothing else changes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.transformer_layers import TransformerBlock, TransformerConfig, scan, stack
from spatia_jax.parallel.rematerialisation import REMATS

LAYERS, SHAPE = 3, (2, 2, 5, 24)
SMALL = TransformerConfig(dim=24, ffn_dim=96, num_heads=2, num_layers=LAYERS, control_layers=())


def blocks():
    return stack(lambda rngs: TransformerBlock(SMALL, rngs=rngs), LAYERS, nnx.Rngs(jax.random.key(0, impl="rbg")))


@pytest.fixture(scope="module")
def stacked():
    return nnx.graphdef(nnx.eval_shape(blocks)), jax.jit(lambda: nnx.state(blocks()))()


def run(stacked, x, remat: str):
    """The blocks, on tokens x."""
    text, modulation, rotary = jnp.ones((2, 3, 24)), jnp.full((2, 2, 6, 24), 0.1), jnp.ones((2, *SHAPE[1:3], 6))
    graphdef, params = stacked
    return scan(
        lambda block, x, _: (block(x, text, modulation, rotary), None), nnx.merge(graphdef, params), x, remat=remat
    )[0]


def kept(stacked, remat: str) -> int:
    """Numbers that wait for the backward pass, in arrays with an entry for each block."""
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    waiting = jax.eval_shape(lambda x: jax.tree.leaves(jax.vjp(lambda x: run(stacked, x, remat), x)[1]), x)
    return sum(math.prod(leaf.shape) for leaf in waiting if leaf.shape[:1] == (LAYERS,))


def test_each_policy_keeps_less_than_the_one_before(stacked):
    amounts = [kept(stacked, remat) for remat in REMATS]
    assert amounts[:5] == sorted(set(amounts), reverse=True)
    tokens = LAYERS * math.prod(SHAPE)
    # Beside parameters, which every policy needs, "block" keeps its input, "attention" also what two attentions made.
    assert amounts[REMATS.index("attention")] - amounts[REMATS.index("block")] == 2 * tokens
    hidden = tokens // SMALL.dim * SMALL.ffn_dim - LAYERS * SMALL.ffn_dim  # whose bias is not needed a second time
    assert amounts[REMATS.index("hidden")] - amounts[REMATS.index("attention")] == hidden
    assert amounts[REMATS.index("offload")] == amounts[REMATS.index("block")]


def test_offload_is_to_the_host(stacked):
    program = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(run(stacked, x, "offload"))))(jnp.ones(SHAPE))
    assert str(program).count("device_put") == 2  # there and back
    assert "Host" in str(program)


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMATS[1:])
def test_gradients_stay_the_same(stacked, remat):
    x = jax.random.normal(jax.random.key(1), SHAPE)

    def gradient(remat):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(run(stacked, x, remat)))))(x)

    np.testing.assert_allclose(gradient(remat), gradient("none"), rtol=1e-5, atol=1e-5)


def test_an_unknown_policy_is_named():
    with pytest.raises(InputError, match="remat is 'full'; it must be one of .*'none', 'dots'"):
        TransformerConfig(remat="full")

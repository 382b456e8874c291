"""Ring attention: keys and values go around a ring of devices, and each device's queries meet them part by part.

The softmax is taken while they pass: every query keeps the largest logit so far, and the sums relative to it (arXiv
2310.01889). The backward pass sends keys and values around once more, and their gradients with them, so that no device
ever holds more than its own part and one that passes. Logits are made for 256 queries at a time, in float32.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from spatia_jax.parallel.rematerialisation import ATTENTION

_BLOCK = 256  # queries whose logits are held at a time
_MASKED = -1e30  # finite: a part may be all padding, and -inf - -inf is no number


def ring_attention(
    queries: Float[Array, "b l heads d"],
    keys: Float[Array, "b l heads d"],
    values: Float[Array, "b l heads d"],
    real: Bool[Array, " l"],
    axis: str,
) -> Float[Array, "b l heads d"]:
    """softmax(q k^T / sqrt(d)) v over the keys of all devices, for the queries of this one; under `shard_map`.

    Args:
        queries, keys, values: this device's parts.
        real: False for keys that nobody sees; some key somewhere must be real.
        axis: of the mesh, along which the tokens are cut.
    """
    length, width = queries.shape[1], queries.shape[3]
    block = min(_BLOCK, length)
    padded = jnp.pad(queries * width**-0.5, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
    blocks = padded.reshape(len(queries), -1, block, *queries.shape[2:]).transpose(1, 0, 3, 2, 4)
    bias = jnp.where(real, 0.0, _MASKED)
    mixed = _ring(blocks, keys.swapaxes(1, 2), values.swapaxes(1, 2), bias, axis)
    return mixed.transpose(1, 0, 3, 2, 4).reshape(padded.shape)[:, :length].astype(queries.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(queries, keys, values, bias, axis):
    """Of blocks of queries [n, b, heads, block, d], keys and values [b, heads, l, d], bias [l]; shaped as queries."""
    return _forward(queries, keys, values, bias, axis)[0]


def _logits(block: Array, keys: Array, bias: Array) -> Array:
    return jnp.einsum("bhqd,bhkd->bhqk", block, keys, preferred_element_type=jnp.float32) + bias


def _pass_on(tree, axis: str):
    """What the device before us in the ring has."""
    devices = lax.axis_size(axis)
    return jax.tree.map(lambda x: lax.ppermute(x, axis, [(i, (i + 1) % devices) for i in range(devices)]), tree)


def _forward(queries, keys, values, bias, axis):
    def meet(state, passing):
        """All queries of this device with the keys and values that are passing."""
        keys, values, bias = passing

        def one_block(args):
            block, mixed, total, top = args
            logits = _logits(block, keys, bias)
            new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
            weights, shrink = jnp.exp(logits - new_top[..., None]), jnp.exp(top - new_top)
            more = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(values.dtype), values,
                              preferred_element_type=jnp.float32)  # fmt: skip
            return mixed * shrink[..., None] + more, total * shrink + jnp.sum(weights, axis=-1), new_top

        return lax.map(one_block, (queries, *state))

    def step(carry, _):
        state, passing = carry
        passing = _pass_on(passing, axis)
        return (meet(state, passing), passing), None

    rows = queries.shape[:-1]
    start = jnp.zeros(queries.shape, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.full(rows, _MASKED, jnp.float32)
    mine = (keys, values, bias)
    (state, _), _ = lax.scan(step, (meet(start, mine), mine), length=lax.axis_size(axis) - 1)
    mixed, total, top = state
    mixed = checkpoint_name((mixed / total[..., None]).astype(queries.dtype), ATTENTION)
    return mixed, (queries, keys, values, bias, mixed, checkpoint_name(top + jnp.log(total), ATTENTION))


def _backward(axis, kept, gradient):
    queries, keys, values, bias, mixed, log_total = kept
    # sum_k p_k dp_k, which the gradient of a softmax subtracts, is the product of the output and its gradient.
    inner = jnp.sum(mixed.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)

    def meet(passing, d_queries):
        keys, values, bias, d_keys, d_values = passing

        def one_block(carry, args):
            d_keys, d_values = carry
            block, d_mixed, log_total, inner, d_block = args
            weights = jnp.exp(_logits(block, keys, bias) - log_total[..., None])
            d_weights = jnp.einsum("bhqd,bhkd->bhqk", d_mixed, values, preferred_element_type=jnp.float32)
            d_logits = (weights * (d_weights - inner[..., None])).astype(block.dtype)
            dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
            d_values = d_values + dot("bhqk,bhqd->bhkd", weights.astype(d_mixed.dtype), d_mixed)
            d_keys = d_keys + dot("bhqk,bhqd->bhkd", d_logits, block)
            return (d_keys, d_values), d_block + dot("bhqk,bhkd->bhqd", d_logits, keys)

        sums, d_queries = lax.scan(one_block, (d_keys, d_values), (queries, gradient, log_total, inner, d_queries))
        return (keys, values, bias, *sums), d_queries

    def step(carry, _):
        passing, d_queries = carry
        return meet(_pass_on(passing, axis), d_queries), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (keys, values, queries)]
    start = meet((keys, values, bias, *zeros[:2]), zeros[2])
    (passing, d_queries), _ = lax.scan(step, start, length=lax.axis_size(axis) - 1)
    d_keys, d_values = _pass_on(passing[3:], axis)  # home
    return (
        d_queries.astype(queries.dtype),
        d_keys.astype(keys.dtype),
        d_values.astype(values.dtype),
        jnp.zeros_like(bias),
    )


_ring.defvjp(_forward, _backward)

"""Softmax attention, and the one place that chooses how a platform computes it.

Every form is softmax(q k^T / sqrt(d)) v with the softmax in float32, and is tested against `reference_attention`:

    TPU     splash attention, a Pallas kernel (`tpu_attention`)
    GPU     cuDNN's flash attention, if it takes the shape
    else    the reference while logits are few, then `blockwise_attention`

How several devices share one attention is `parallel.sequence`'s, which calls this for each device's part.
"""

import functools
import warnings
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from spatia_jax.models.tpu_attention import splash_attention, takes_heads_of
from spatia_jax.parallel import platform
from spatia_jax.parallel.rematerialisation import ATTENTION

_BLOCK = 256  # queries whose logits `blockwise_attention` holds at a time
_MANY_LOGITS = 2**22  # from here on it is faster than `reference_attention`, whose logits no longer fit in a cache


@jax.jit  # one call in the jaxpr, by whose name spatia_jax.plan knows it
def attention(
    queries: Float[Array, "b l heads d"], keys: Float[Array, "b m heads d"], values: Float[Array, "b m heads d"]
) -> Float[Array, "b l heads d"]:
    """softmax(q k^T / sqrt(d)) v, with the softmax in float32 and the output in the dtype of `queries`."""
    on = platform()
    if is_fused(on, queries.dtype, queries.shape[-1]):
        if on == "tpu":
            return splash_attention(queries, keys, values)
        if cudnn_takes(*((x.shape, jnp.dtype(x.dtype)) for x in (queries, keys, values))):
            return jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn")
    batch, length, heads, _ = queries.shape
    if batch * heads * length * keys.shape[1] > _MANY_LOGITS:
        return checkpoint_name(blockwise_attention(queries, keys, values), ATTENTION)
    return checkpoint_name(reference_attention(queries, keys, values), ATTENTION)


def is_fused(on: str, dtype: jax.typing.DTypeLike, head_dim: int) -> bool:
    """Whether `attention` on a platform ("cpu", "gpu", "tpu") never has all l x m weights in memory."""
    if on == "tpu":
        return takes_heads_of(head_dim)
    return on == "gpu" and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


@functools.cache  # so that a shape is tried, and complained about, once
def cudnn_takes(
    *signature: tuple[tuple[int, ...], jnp.dtype], implementation: Literal["cudnn", "xla"] = "cudnn"
) -> bool:
    """Whether cuDNN here compiles attention and its gradient for the (shape, dtype) of queries, keys and values.

    A program for other devices than those of this machine cannot be tried and is believed to compile. Where cuDNN
    refuses, a warning says so, since the form that takes its place is several times slower.
    """
    if implementation == "cudnn" and jax.default_backend() != "gpu" and platform() == "gpu":
        return True

    def total(*arrays: Array) -> Array:
        return jnp.sum(jax.nn.dot_product_attention(*arrays, implementation=implementation).astype(jnp.float32))

    given = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in signature]
    try:
        # Not under the mesh in use: the shapes are those of one device's part.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            jax.jit(jax.grad(total, (0, 1, 2))).lower(*given).compile()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"cuDNN refuses attention over {signature}: {reason}; computed in blocks instead", stacklevel=2)
        return False
    return True


def reference_attention(
    queries: Float[Array, "b l heads d"], keys: Float[Array, "b m heads d"], values: Float[Array, "b m heads d"]
) -> Float[Array, "b l heads d"]:
    """Attention in plain JAX, float32 softmax; the reference of every other implementation, and fast while it is small.

    The weights are normalised after they met the values: one pass less over the l x m matrix, which on two CPU cores
    (b 4, l 280, heads 4, d 64) made forward and backward 4.0 ms, against 6.4 ms of `jax.nn.dot_product_attention`.
    """
    scale = queries.shape[-1] ** -0.5
    logits = jnp.einsum("blhd,bmhd->bhlm", queries * scale, keys, preferred_element_type=jnp.float32)
    # The shift cancels in the quotient, so it needs no gradient.
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    totals = jnp.einsum("bhlm->blh", weights)[..., None]
    mixed = jnp.einsum("bhlm,bmhd->blhd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / totals).astype(queries.dtype)


def blockwise_attention(
    queries: Float[Array, "b l heads d"],
    keys: Float[Array, "b m heads d"],
    values: Float[Array, "b m heads d"],
    *,
    head_by_head: bool | None = None,
) -> Float[Array, "b l heads d"]:
    """The same with the logits of 256 queries in memory at a time, recomputed in the backward pass.

    On one CPU core (b 1, l 2000, heads 6, d 128, float32) 68 ms forward and 213 ms with gradients, against 203 and 476
    of the reference; at the released length the reference would hold 68 GB of logits.

    Args:
        head_by_head: one head after another, so that its logits stay in a CPU's cache; else all heads at once, which
            fills an accelerator and lets heads be sharded. By default as the backend likes it.
    """
    width, length = queries.shape[-1], queries.shape[1]
    padded = jnp.pad(queries * width**-0.5, ((0, 0), (0, -length % _BLOCK), (0, 0), (0, 0)))
    heads_first = tuple(x.swapaxes(1, 2) for x in (padded, keys, values))

    def attend(q: Array, k: Array, v: Array) -> Array:
        """[..., l, d] over [..., m, d]."""

        @jax.checkpoint
        def attend_block(block: Array) -> Array:
            logits = jnp.einsum("...qd,...kd->...qk", block, k, preferred_element_type=jnp.float32)
            weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
            mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(block.dtype)

        blocks = jnp.moveaxis(q.reshape(*q.shape[:-2], -1, _BLOCK, width), -3, 0)
        return jnp.moveaxis(jax.lax.map(attend_block, blocks), 0, -3).reshape(q.shape)

    if platform() == "cpu" if head_by_head is None else head_by_head:
        flat = tuple(x.reshape(-1, *x.shape[2:]) for x in heads_first)
        mixed = jax.lax.map(lambda head: attend(*head), flat).reshape(heads_first[0].shape)
    else:
        mixed = attend(*heads_first)
    return mixed[:, :, :length].swapaxes(1, 2)

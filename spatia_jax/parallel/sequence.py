"""One attention over several devices: tokens over the mesh axis `context`, heads over `tensor`, examples over the rest.

Tokens are cut within each latent frame, so that every device has a part of all frames: what belongs to a frame
(modulation, hints, references) then never crosses devices. Where the tokens of a frame do not divide, they are padded
with tokens that no other one sees. Everything but self-attention works on single tokens and needs no exchange.

Self-attention has two forms. "ulysses" (arXiv 2309.14509) exchanges a part of the tokens with all heads for all tokens
with a part of the heads, and runs the platform's own kernel on them: four all-to-alls, and no more devices than heads.
"ring" (arXiv 2310.01889) sends keys and values around (`parallel.ring`): any number of devices.

Kernels cannot be cut by XLA, so each attention is a `shard_map` over the mesh in use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from spatia_jax.parallel.checks import check_heads
from spatia_jax.parallel.in_use import axis_sizes, batch_axes
from spatia_jax.parallel.ring import ring_attention
from spatia_jax.parallel.sharding import dividing

Method = Literal["ulysses", "ring"]
METHODS: tuple[Method, ...] = ("ulysses", "ring")

# (q [b, l, heads, d], k [b, m, heads, d], v [b, m, heads, d]) -> [b, l, heads, d], on one device.
Attend = Callable[[Array, Array, Array], Array]


def spread_tokens(x: Float[Array, "b f s c"]) -> Float[Array, "b f t c"]:
    """For use under jit: examples and tokens over the mesh in use, with as many tokens added as that needs.

    Without a mesh, and where the tokens divide, t = s. Tokens once spread stay as they are.
    """
    sizes = axis_sizes()
    if not sizes:
        return x
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % sizes.get("context", 1)), (0, 0)))
    return lax.with_sharding_constraint(x, _spec(x.shape))


def self_attention(
    attend: Attend,
    queries: Float[Array, "b f t heads d"],
    keys: Float[Array, "b f t heads d"],
    values: Float[Array, "b f t heads d"],
    tokens: int,
    method: Method,
) -> Float[Array, "b f t heads d"]:
    """Attention among all tokens of all frames, of which the first `tokens` in each frame are real.

    Args:
        attend: attention on one device.
        method: how tokens that lie on several devices meet.

    Raises:
        InputError: "ulysses", and the heads do not divide.
    """
    sizes, heads = axis_sizes(), queries.shape[3]
    if not sizes:
        return _over_frames(attend, queries, keys, values)
    local: Callable[..., Array] = partial(_over_frames, attend)
    if sizes.get("context", 1) > 1:
        if method == "ulysses":
            check_heads(heads, sizes["context"], sizes.get("tensor", 1))
        local = partial(_ulysses, attend, tokens=tokens) if method == "ulysses" else partial(_ring, tokens=tokens)
    spec = _spec(queries.shape)
    run = jax.shard_map(local, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return run(queries, keys, values)


def cross_attention(
    attend: Attend,
    queries: Float[Array, "b f t heads d"],
    keys: Float[Array, "b l heads d"],
    values: Float[Array, "b l heads d"],
) -> Float[Array, "b f t heads d"]:
    """Attention of every token to a text that each device has whole."""
    local = partial(_over_frames, attend)
    if not axis_sizes():
        return local(queries, keys, values)
    spec = _spec(queries.shape)
    text = PartitionSpec(spec[0], None, spec[3])
    run = jax.shard_map(local, in_specs=(spec, text, text), out_specs=spec, check_vma=False)
    return run(queries, keys, values)


def _spec(shape: tuple[int, ...]) -> PartitionSpec:
    """How tokens [b, f, t, c] lie, or their heads [b, f, t, heads, d].

    Axes of size 1 are named too: a `shard_map` sums gradients over those that are not.
    """
    heads = dividing(("tensor",), shape[3], axis_sizes()) if len(shape) == 5 else None
    return PartitionSpec(batch_axes(shape[0]), None, dividing(("context",), shape[2], axis_sizes()), heads)


def _over_frames(attend: Attend, queries: Array, keys: Array, values: Array) -> Array:
    """`attend` for tokens with a frame axis, [b, f, t, heads, d]."""
    flat = (x.reshape(len(x), -1, *x.shape[-2:]) for x in (queries, keys, values))
    return attend(*flat).reshape(queries.shape)


def _ulysses(attend: Attend, queries: Array, keys: Array, values: Array, *, tokens: int) -> Array:
    def all_tokens(x: Array) -> Array:
        return lax.all_to_all(x, "context", split_axis=3, concat_axis=2, tiled=True)[:, :, :tokens]

    mixed = _over_frames(attend, all_tokens(queries), all_tokens(keys), all_tokens(values))
    padding = queries.shape[2] * lax.axis_size("context") - tokens
    mixed = jnp.pad(mixed, ((0, 0), (0, 0), (0, padding), (0, 0), (0, 0)))
    return lax.all_to_all(mixed, "context", split_axis=2, concat_axis=3, tiled=True)


def _ring(queries: Array, keys: Array, values: Array, *, tokens: int) -> Array:
    frames, mine = queries.shape[1:3]
    real = lax.axis_index("context") * mine + jnp.arange(mine) < tokens
    real = jnp.broadcast_to(real, (frames, mine)).reshape(-1)
    return _over_frames(lambda q, k, v: ring_attention(q, k, v, real, "context"), queries, keys, values)

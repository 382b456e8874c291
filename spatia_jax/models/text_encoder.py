"""Text encoder: UMT5 (Chung et al. 2023, arXiv 2304.09151), any size; released as UMT5-XXL (spec 2.9).

A T5 encoder: pre-norm blocks without biases, attention without 1 / sqrt(d), a gated feed-forward. Positions enter only
as a bias on the attention scores, looked up by the bucketed distance between two tokens; unlike T5, every layer has its
own table.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.errors import InputError
from spatia_jax.models.transformer_layers import RMSNorm, scan, stack
from spatia_jax.parallel import spread_examples


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder; the defaults are UMT5-XXL.

    Attributes:
        attention_dim: width of queries, keys and values, all heads together.
        num_buckets: rows of a layer's position table: half for tokens before, half for tokens after.
        max_distance: tokens; everything from here on shares the last bucket.
        dtype: of matrix products and activations; norms and softmax are float32.
    """

    vocab_size: int = 256384
    dim: int = 4096
    attention_dim: int = 4096
    ffn_dim: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        if self.attention_dim % self.num_heads:
            raise InputError(
                f"TextEncoderConfig.attention_dim is {self.attention_dim}; it must be a multiple of num_heads "
                f"({self.num_heads})"
            )
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            raise InputError(
                f"TextEncoderConfig: num_buckets {self.num_buckets} must be a multiple of 4 and max_distance "
                f"{self.max_distance} above a quarter of it"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"TextEncoderConfig.dtype is {self.dtype!r}; it must be 'float32' or 'bfloat16'")

    def linear(self, inputs: int, outputs: int, rngs: nnx.Rngs, fan: int | None = None) -> nnx.Linear:
        """A linear layer without bias, normal with variance 1 / fan (default: its inputs)."""
        init = nnx.initializers.normal((fan or inputs) ** -0.5)
        return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, dtype=jnp.dtype(self.dtype), rngs=rngs)


class TextEncoder(nnx.Module):
    """Token ids to one vector a token."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(1.0)
        self.embedding = nnx.Embed(config.vocab_size, config.dim, embedding_init=normal, rngs=rngs)
        self.blocks = stack(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.dim, config.eps)
        self.config = config

    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l dim"]:
        """Encode texts.

        Args:
            ids: token ids, padded to a common length with any id.
            mask: true up to and including each text's last token; padding is not attended to.

        Returns:
            float32; zero where `mask` is false.
        """
        mask = mask.astype(bool)
        buckets = position_buckets(ids.shape[1], self.config.num_buckets, self.config.max_distance)
        x = self.embedding(ids).astype(self.config.dtype)
        x, _ = scan(lambda block, x, _: (block(x, mask, buckets), None), self.blocks, x)
        return jnp.where(mask[..., None], self.norm(x).astype(jnp.float32), 0.0)


class Block(nnx.Module):
    """Self-attention, then the feed-forward, each on the normalised sum so far."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.dim, config.eps)
        self.attention = Attention(config, rngs=rngs)
        self.norm2 = RMSNorm(config.dim, config.eps)
        self.ffn = GatedMlp(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l c"], mask: Bool[Array, "b l"], buckets: Int[np.ndarray, "l l"]
    ) -> Float[Array, "b l c"]:
        x = spread_examples(x)
        x = x + self.attention(self.norm1(x), mask, buckets)
        return x + self.ffn(self.norm2(x))


class Attention(nnx.Module):
    """Multi-head self-attention with a learned bias for the distance; scores are not divided by sqrt(d)."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        dim, width = config.dim, config.attention_dim
        # What 1 / sqrt(d) would do to the scores at the start, the queries' initial values do.
        self.q = config.linear(dim, width, rngs, fan=dim * width // config.num_heads)
        self.k = config.linear(dim, width, rngs)
        self.v = config.linear(dim, width, rngs)
        self.o = config.linear(width, dim, rngs)
        bias = nnx.initializers.normal(config.dim**-0.5)
        self.position_bias = nnx.Param(bias(rngs.params(), (config.num_buckets, config.num_heads)))
        self.num_heads = config.num_heads

    def __call__(
        self, x: Float[Array, "b l c"], mask: Bool[Array, "b l"], buckets: Int[np.ndarray, "l l"]
    ) -> Float[Array, "b l c"]:
        q, k, v = (y.reshape(*y.shape[:2], self.num_heads, -1) for y in (self.q(x), self.k(x), self.v(x)))
        bias = self.position_bias[...][buckets].transpose(2, 0, 1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) + bias
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.o(y.reshape(*x.shape[:2], -1))


class GatedMlp(nnx.Module):
    """down(up(x) * gelu(gate(x))), with the tanh form of GELU."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        self.gate = config.linear(config.dim, config.ffn_dim, rngs)
        self.up = config.linear(config.dim, config.ffn_dim, rngs)
        self.down = config.linear(config.ffn_dim, config.dim, rngs)

    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        return self.down(self.up(x) * jax.nn.gelu(self.gate(x), approximate=True))


def position_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "length length"]:
    """Row of the position table for (query, key): exact up to a quarter of the buckets, then logarithmic.

    Computed in float32, as the weights were trained: a distance that lies on the edge of a bucket stays on its side.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, exact = num_buckets // 2, num_buckets // 4
    distance = np.abs(offset)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    far = exact + (ratio * (half - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(far, half - 1)) + np.where(offset > 0, half, 0)

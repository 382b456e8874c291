"""What the main and the control branch share: configuration, one transformer block, and stacks of them.

Tokens keep their frame axis, [b, f, s, c] with s tokens a latent frame: timesteps belong to frames, so modulation is
computed once a frame, [b, f, 6, c], and broadcast over the frame's tokens. Norms, modulation, rotary angles and the
sums of the residual stream are float32; matrix products and stored activations have `config.dtype`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.models.attention import attention
from spatia_jax.models.lora import Lora, add_beside, merge_block
from spatia_jax.models.rotary import rotate
from spatia_jax.parallel.rematerialisation import HIDDEN, REMATS, Remat, rematerialised
from spatia_jax.parallel.sequence import METHODS, Method, cross_attention, self_attention, spread_tokens

xavier = nnx.initializers.xavier_uniform()


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the diffusion transformer; the defaults are Wan2.2-TI2V-5B with Spatia's control branch.

    `control_layers` are the main blocks after which a control block adds its hint; `control_in_dim` counts the channels
    of the projection's latents plus those of its hole mask. `control_skip` adds the projection's latents to the output:
    a network that predicts x0 then starts as the projection itself and learns what to change in it. `dtype` is that of
    matrix products and activations; parameters are float32. `remat` says what each block keeps for the backward pass
    (`parallel.rematerialisation`), `sequence_parallel` how self-attention meets tokens that lie on several devices of
    the mesh axis `context` (`parallel.sequence`).
    """

    dim: int = 3072
    ffn_dim: int = 14336
    num_heads: int = 24
    num_layers: int = 30
    in_dim: int = 48
    out_dim: int = 48
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    control_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 28)
    control_in_dim: int = 96
    control_skip: bool = False
    dtype: str = "float32"
    remat: Remat = "none"
    sequence_parallel: Method = "ulysses"

    def __post_init__(self):
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise InputError(
                f"TransformerConfig: dim {self.dim} over num_heads {self.num_heads} must give an even head size >= 6"
            )
        if self.freq_dim % 2:
            raise InputError(f"TransformerConfig.freq_dim is {self.freq_dim}; it must be even (cosines and sines)")
        if self.patch_size[0] != 1:
            raise InputError(f"TransformerConfig.patch_size is {self.patch_size}; its first entry (time) must be 1")
        allowed = range(self.num_layers)
        if list(self.control_layers) != sorted(set(self.control_layers) & set(allowed)):
            raise InputError(
                f"TransformerConfig.control_layers is {self.control_layers}; "
                f"it must rise and stay within 0 .. {self.num_layers - 1}"
            )
        if self.control_skip and self.control_in_dim < self.out_dim:
            raise InputError(
                f"TransformerConfig.control_skip needs control_in_dim ({self.control_in_dim}) to be at least out_dim "
                f"({self.out_dim})"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"TransformerConfig.dtype is {self.dtype!r}; it must be 'float32' or 'bfloat16'")
        for name, known in (("remat", REMATS), ("sequence_parallel", METHODS)):
            if getattr(self, name) not in known:
                raise InputError(f"TransformerConfig.{name} is {getattr(self, name)!r}; it must be one of {known}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def linear(self, inputs: int, outputs: int, rngs: nnx.Rngs, kernel_init: Callable = xavier) -> nnx.Linear:
        """A linear layer with bias, computed in `dtype`."""
        return nnx.Linear(inputs, outputs, kernel_init=kernel_init, dtype=jnp.dtype(self.dtype), rngs=rngs)


def scaled(initializer: Callable, factor: float) -> Callable:
    return lambda *args, **kwargs: factor * initializer(*args, **kwargs)


def layer_norm(x: Float[Array, "*b c"], eps: float) -> Float[Array, "*b c"]:
    """Zero mean and unit variance over channels, in float32, without learned scale or shift."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis; float32 inside, dtype kept."""

    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention of tokens [b, f, s, c], with RMS norms over the full width of q and k.

    To a text [b, l, c], or else among themselves; then `rotary` holds the angles of the first tokens of each frame, and
    those beyond, if there are any, are padding.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.q = config.linear(dim, dim, rngs)
        self.k = config.linear(dim, dim, rngs)
        self.v = config.linear(dim, dim, rngs)
        self.o = config.linear(dim, dim, rngs, _residual_init(config))
        self.norm_q = RMSNorm(dim, config.eps)
        self.norm_k = RMSNorm(dim, config.eps)
        self.num_heads, self.method = config.num_heads, config.sequence_parallel

    def to_text(self, x: Float[Array, "b f s c"], text: Float[Array, "b l c"]) -> Float[Array, "b f s c"]:
        return self.o(cross_attention(attention, *self._heads(x, text)).reshape(x.shape))

    def among_tokens(
        self, x: Float[Array, "b f s c"], rotary: Float[Array, "2 f real half"]
    ) -> Float[Array, "b f s c"]:
        q, k, v = self._heads(x, x)
        tokens = rotary.shape[2]
        rotary = jnp.pad(rotary, ((0, 0), (0, 0), (0, x.shape[2] - tokens), (0, 0)))
        q, k = rotate(q, rotary), rotate(k, rotary)
        return self.o(self_attention(attention, q, k, v, tokens, self.method).reshape(x.shape))

    def _heads(self, x: Array, source: Array) -> list[Array]:
        """Queries of x, keys and values of the source, [..., heads, d]."""
        qkv = self.norm_q(self.q(x)), self.norm_k(self.k(source)), self.v(source)
        return [y.reshape(*y.shape[:-1], self.num_heads, -1) for y in qkv]


class Mlp(nnx.Module):
    """Linear, activation, linear."""

    def __init__(self, config: TransformerConfig, sizes: tuple[int, int, int], activation: Callable, init, *, rngs):
        self.up = config.linear(sizes[0], sizes[1], rngs)
        self.down = config.linear(sizes[1], sizes[2], rngs, init)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        return self.down(self.activation(checkpoint_name(self.up(x), HIDDEN)))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the text, feed-forward; the first and last modulated by the timestep.

    Its own `modulation` table [6, c] is added to the frames' modulation; rows are shift, scale and gate of the
    self-attention, then of the feed-forward.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        # Plain pre-norm residual blocks to begin with: no shift, no scale, gates open.
        self.modulation = nnx.Param(jnp.zeros((6, config.dim)).at[jnp.array([2, 5])].set(1.0))
        self.self_attn = Attention(config, rngs=rngs)
        self.norm_cross = nnx.LayerNorm(config.dim, epsilon=config.eps, dtype=jnp.float32, rngs=rngs)
        self.cross_attn = Attention(config, rngs=rngs)
        sizes = (config.dim, config.ffn_dim, config.dim)
        self.ffn = Mlp(config, sizes, jax.nn.gelu, _residual_init(config), rngs=rngs)
        self.eps = config.eps

    def __call__(
        self,
        x: Float[Array, "b f s c"],
        context: Float[Array, "b l c"],
        modulation: Float[Array, "b f 6 c"],
        rotary: Float[Array, "2 f real half"],
    ) -> Float[Array, "b f s c"]:
        def add(x, update):
            return (x.astype(jnp.float32) + update).astype(x.dtype)

        x = spread_tokens(x)
        rows = jnp.split(modulation + self.modulation[...], 6, axis=2)  # each [b, f, 1, c]: broadcast over tokens
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows
        y = (layer_norm(x, self.eps) * (1 + scale) + shift).astype(x.dtype)
        x = add(x, self.self_attn.among_tokens(y, rotary) * gate)
        x = add(x, self.cross_attn.to_text(self.norm_cross(x).astype(x.dtype), context))
        y = (layer_norm(x, self.eps) * (1 + ffn_scale) + ffn_shift).astype(x.dtype)
        return add(x, self.ffn(y) * ffn_gate)


def _residual_init(config: TransformerConfig) -> Callable:
    # Three branches a block add up on the residual stream: keep its variance independent of depth.
    return scaled(xavier, (3 * config.num_layers) ** -0.5)


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` independently initialised modules as one, whose parameters have a leading axis; run by `scan`."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    params = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(jax.random.split(rngs.params(), count))
    return nnx.merge(graphdef, params)


def scan(
    step: Callable,
    stacked: nnx.Module,
    carry: Any,
    inputs: Any = None,
    *,
    remat: Remat = "none",
    lora: Lora | None = None,
    merge_lora: bool = True,
):
    """`jax.lax.scan` of `carry, output = step(module, carry, input)` over the modules of a `stack`.

    A LoRA is merged into each module as its turn comes, so that no second copy of the stack is ever made, or else
    computed beside its kernels.
    """
    graphdef, params = nnx.split(stacked)

    def body(carry, layer):
        layer_params, layer_lora, layer_input = layer
        if merge_lora:
            return step(nnx.merge(graphdef, merge_block(layer_params, layer_lora)), carry, layer_input)
        return step(add_beside(nnx.merge(graphdef, layer_params), layer_lora), carry, layer_input)

    return jax.lax.scan(rematerialised(body, remat), carry, (params, lora or {}, inputs))


def timestep_embedding(timesteps: Float[Array, "*b"], dim: int) -> Float[Array, "*b dim"]:
    """[cos(t w), sin(t w)] with w from 1 down to 1/10000, to float32 rounding for |t| <= 1024.

    t w in float32 would be off by 6e-5 rad at t = 1000. Count in turns instead and cut both factors: a coarse part of
    12 bits each, whose product is exact and loses its whole turns exactly, and remainders whose products are small.
    """
    turns = 10_000.0 ** (-np.arange(dim // 2, dtype=np.float64) / (dim // 2)) / (2 * np.pi)
    coarse_turns = np.round(turns * 2**14) / 2**14
    t = timesteps.astype(jnp.float32)[..., None]
    coarse_t = jnp.round(t * 4) / 4
    product = coarse_t * np.float32(coarse_turns)
    phase = (product - jnp.round(product)) + coarse_t * np.float32(turns - coarse_turns)
    angles = 2 * np.pi * (phase + (t - coarse_t) * np.float32(turns))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def patchify(x: Float[Array, "b f p q c"], patch_size: tuple[int, int, int]) -> Float[Array, "b f s d"]:
    """Cut latents into patches of rows and columns; a patch's values run over (row, column, channel)."""
    b, f, p, q, c = x.shape
    _, height, width = patch_size
    x = x.reshape(b, f, p // height, height, q // width, width, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, f, -1, height * width * c)


def unpatchify(
    x: Float[Array, "b f s d"], patch_size: tuple[int, int, int], rows: int, columns: int
) -> Float[Array, "b f p q c"]:
    """Inverse of `patchify` for latents of `rows` x `columns`."""
    b, f, _, _ = x.shape
    _, height, width = patch_size
    x = x.reshape(b, f, rows // height, columns // width, height, width, -1)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, f, rows, columns, -1)

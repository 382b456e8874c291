"""Splash attention, JAX's Pallas kernel for TPU, for queries and keys of any length."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

from spatia_jax.parallel.rematerialisation import ATTENTION

LANES = 128
_QUERIES, _KEYS, _KEYS_AT_ONCE = 1024, 1024, 512  # in VMEM; and whose logits are made at a time


def takes_heads_of(head_dim: int) -> bool:
    """Whether the kernel fills the lanes of a TPU with heads of this width."""
    return head_dim % LANES == 0


def splash_attention(
    queries: Float[Array, "b l heads d"],
    keys: Float[Array, "b m heads d"],
    values: Float[Array, "b m heads d"],
    *,
    interpret: bool = False,
) -> Float[Array, "b l heads d"]:
    """softmax(q k^T / sqrt(d)) v.

    Lengths are padded to whole blocks; only the last block of keys is masked, the others run without a mask.

    Args:
        interpret: run the kernel as plain JAX, on any platform, for tests.
    """
    length, count, heads, width = queries.shape[1], keys.shape[1], queries.shape[2], queries.shape[3]
    blocks = min(_QUERIES, _up(length, LANES)), min(_KEYS, _up(count, LANES))

    def laid_out(x: Array, block: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
        return x.swapaxes(1, 2)

    run = _make(_up(length, blocks[0]), count, heads, blocks, interpret)
    q, k, v = laid_out(queries * width**-0.5, blocks[0]), laid_out(keys, blocks[1]), laid_out(values, blocks[1])
    return jax.vmap(run)(q, k, v).swapaxes(1, 2)[:, :length].astype(queries.dtype)


@dataclass(frozen=True)
class _FirstKeys(masks.Mask):
    """Every query sees the first `count` keys; those after them are padding."""

    queries: int
    keys: int
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.queries, self.keys

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (range(size)[part] for size, part in zip(self.shape, index, strict=True))
        return np.broadcast_to(np.asarray(columns) < self.count, (len(rows), len(columns)))


def _make(length: int, count: int, heads: int, blocks: tuple[int, int], interpret: bool):
    """The kernel for `length` padded queries and `count` keys of which as many are real."""
    block_q, block_k = blocks
    at_once = _KEYS_AT_ONCE if block_k % _KEYS_AT_ONCE == 0 else block_k
    # One backward kernel makes all three gradients with 5 products, two kernels would need 7. It leaves a part of the
    # queries' gradient for every block of keys, so these are large.
    block_back = 2 * block_k if _up(count, block_k) % (2 * block_k) == 0 else block_k
    sizes = kernel.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=at_once,
        block_q_dkv=block_q, block_kv_dkv=block_back, block_kv_dkv_compute=at_once, use_fused_bwd_kernel=True,
    )  # fmt: skip
    mask = masks.MultiHeadMask([_FirstKeys(length, _up(count, block_k), count)] * heads)
    return kernel.make_splash_mha_single_device(
        mask, block_sizes=sizes, residual_checkpoint_name=ATTENTION, interpret=interpret
    )


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple

"""Metric depth of single images: the architecture of Depth-Anything-V2 (arXiv 2406.09414), any size.

A DINOv2 vision transformer (arXiv 2304.07193) reads the image as 14-pixel patches; the dense prediction head (DPT,
arXiv 2103.13413) fuses four of its layers from coarse to fine. The metric variant ends in `max_depth * sigmoid`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.models.depth_head import DepthHead
from spatia_jax.models.resize import resize

_IMAGENET_MEAN = np.asarray((0.485, 0.456, 0.406), np.float32)
_IMAGENET_STD = np.asarray((0.229, 0.224, 0.225), np.float32)


@dataclass(frozen=True)
class DepthConfig:
    """Size of the network; the defaults are Depth-Anything-V2-Metric-Small as released.

    Attributes:
        dim, num_layers, num_heads, mlp_ratio: the transformer.
        patch_size: pixels.
        position_grid: rows and columns of the learned position embedding; resampled to the image's own grid.
        feature_layers: the four layers (0-based) whose output the head reads, shallow to deep.
        neck_dims: channels of the four reassembled feature maps, at 4, 2, 1 and 1/2 times the patch grid.
        fusion_dim: channels while fusing.
        head_dim: channels before the last 1x1 convolution.
        max_depth: metres; the output lies in (0, max_depth).
        input_size: (height, width) that the transformer sees, multiples of the patch; None: the image's own size
            rounded to the nearest multiple.
    """

    dim: int = 384
    num_layers: int = 12
    num_heads: int = 6
    mlp_ratio: int = 4
    patch_size: int = 14
    position_grid: tuple[int, int] = (37, 37)
    feature_layers: tuple[int, int, int, int] = (2, 5, 8, 11)
    neck_dims: tuple[int, int, int, int] = (48, 96, 192, 384)
    fusion_dim: int = 64
    head_dim: int = 32
    max_depth: float = 20.0
    input_size: tuple[int, int] | None = None

    def __post_init__(self):
        if self.dim % self.num_heads:
            raise InputError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        if len(self.feature_layers) != 4 or not all(0 <= i < self.num_layers for i in self.feature_layers):
            raise InputError(f"feature_layers {self.feature_layers} must be four layers in 0..{self.num_layers - 1}")
        if self.input_size and any(side % self.patch_size for side in self.input_size):
            raise InputError(f"input_size {self.input_size} must be multiples of patch_size {self.patch_size}")


class DepthNetwork(nnx.Module):
    """Images to metric depth."""

    def __init__(self, config: DepthConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.backbone = Backbone(config, rngs=rngs)
        self.head = DepthHead(config.dim, config.neck_dims, config.fusion_dim, config.head_dim, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        """Z-depth in metres.

        Args:
            images: [b, h, w, 3] in [-1, 1], any size.

        Returns:
            [b, h, w], in (0, max_depth).
        """
        _, height, width, _ = images.shape
        patch = self.config.patch_size
        rows, cols = (
            (side // patch for side in self.config.input_size)
            if self.config.input_size
            else (max(1, round(side / patch)) for side in (height, width))
        )
        inputs = resize((images + 1) / 2, rows * patch, cols * patch, "cubic")
        features = self.backbone((inputs - _IMAGENET_MEAN) / _IMAGENET_STD)
        logits = self.head(features, rows * patch, cols * patch)
        depth = self.config.max_depth * jax.nn.sigmoid(logits)
        return resize(depth, height, width)[..., 0]


class Backbone(nnx.Module):
    """DINOv2 encoder: stacked pre-norm blocks under one `lax.scan`."""

    def __init__(self, config: DepthConfig, *, rngs: nnx.Rngs):
        self.config = config
        patch, dim, (rows, cols) = config.patch_size, config.dim, config.position_grid
        normal = jax.nn.initializers.truncated_normal(0.02)
        self.patches = nnx.Linear(patch * patch * 3, dim, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (dim,)))
        self.class_position = nnx.Param(normal(rngs.params(), (dim,)))
        self.positions = nnx.Param(normal(rngs.params(), (rows, cols, dim)))
        self.blocks = _stack(config, rngs)
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b p q c"]]:
        """Normalised features of the four `feature_layers` on the patch grid, without the class token."""
        batch, height, width, _ = images.shape
        patch, dim = self.config.patch_size, self.config.dim
        rows, cols = height // patch, width // patch
        cells = images.reshape(batch, rows, patch, cols, patch, 3).swapaxes(2, 3).reshape(batch, rows, cols, -1)
        positions = resize(self.positions[None], rows, cols, "cubic")
        grid = (self.patches(cells) + positions).reshape(batch, rows * cols, dim)
        first = jnp.broadcast_to(self.class_token[...] + self.class_position[...], (batch, 1, dim))
        tokens = jnp.concatenate([first, grid], axis=1)

        graphdef, stacked = nnx.split(self.blocks)

        def block(tokens, params):
            tokens = nnx.merge(graphdef, params)(tokens)
            return tokens, tokens

        _, outputs = jax.lax.scan(block, tokens, stacked)
        return [self.norm(outputs[i])[:, 1:].reshape(batch, rows, cols, dim) for i in self.config.feature_layers]


class Block(nnx.Module):
    """Attention and MLP, each normalised before, and scaled per channel (LayerScale) after."""

    def __init__(self, config: DepthConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.num_heads = config.num_heads
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.query = nnx.Linear(dim, dim, rngs=rngs)
        self.key = nnx.Linear(dim, dim, rngs=rngs)
        self.value = nnx.Linear(dim, dim, rngs=rngs)
        self.output = nnx.Linear(dim, dim, rngs=rngs)
        self.scale1 = nnx.Param(jnp.ones(dim))
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.up = nnx.Linear(dim, config.mlp_ratio * dim, rngs=rngs)
        self.down = nnx.Linear(config.mlp_ratio * dim, dim, rngs=rngs)
        self.scale2 = nnx.Param(jnp.ones(dim))

    def __call__(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        normed = self.norm1(tokens)
        heads = (*tokens.shape[:2], self.num_heads, -1)
        query, key, value = (project(normed).reshape(heads) for project in (self.query, self.key, self.value))
        attended = jax.nn.dot_product_attention(query, key, value).reshape(tokens.shape)
        tokens = tokens + self.output(attended) * self.scale1
        hidden = jax.nn.gelu(self.up(self.norm2(tokens)), approximate=False)
        return tokens + self.down(hidden) * self.scale2


def _stack(config: DepthConfig, rngs: nnx.Rngs) -> Block:
    """One `Block` whose parameters carry a leading layer axis."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs):
        return Block(config, rngs=rngs)

    return build(rngs)

"""Dense prediction head (DPT, arXiv 2103.13413, as Depth-Anything uses it: the class token is not read)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.models.resize import resize

SCALES = (4, 2, 1, 0.5)  # of the four feature maps, relative to the patch grid, shallow to deep


class DepthHead(nnx.Module):
    """Four feature maps on one grid -> one channel at full resolution."""

    def __init__(self, dim: int, neck_dims: Sequence[int], fusion_dim: int, head_dim: int, *, rngs: nnx.Rngs):
        for level, (neck_dim, scale) in enumerate(zip(neck_dims, SCALES, strict=True)):
            setattr(self, f"reassemble{level}", Reassemble(dim, neck_dim, fusion_dim, scale, rngs=rngs))
            setattr(self, f"fuse{level}", Fuse(fusion_dim, has_skip=level < len(SCALES) - 1, rngs=rngs))
        self.conv1 = _conv3(fusion_dim, fusion_dim // 2, rngs)
        self.conv2 = _conv3(fusion_dim // 2, head_dim, rngs)
        self.conv3 = nnx.Linear(head_dim, 1, rngs=rngs)

    def __call__(self, features: list[Float[Array, "b p q c"]], height: int, width: int) -> Float[Array, "b y x 1"]:
        maps = [getattr(self, f"reassemble{level}")(feature) for level, feature in enumerate(features)]
        fused: Any = None
        for level in reversed(range(len(SCALES))):
            _, rows, cols, _ = maps[level].shape
            size = maps[level - 1].shape[1:3] if level else (2 * rows, 2 * cols)
            fused = getattr(self, f"fuse{level}")(maps[level], fused, size)
        hidden = resize(self.conv1(fused), height, width, "linear_corners")
        return self.conv3(jax.nn.relu(self.conv2(hidden)))


class Reassemble(nnx.Module):
    """One transformer layer's features, projected and brought to their place in the pyramid."""

    def __init__(self, dim: int, neck_dim: int, fusion_dim: int, scale: float, *, rngs: nnx.Rngs):
        self.project = nnx.Linear(dim, neck_dim, rngs=rngs)
        if scale > 1:
            self.resample: Enlarge | nnx.Conv | None = Enlarge(neck_dim, int(scale), rngs=rngs)
        elif scale < 1:
            stride = int(1 / scale)
            self.resample = nnx.Conv(neck_dim, neck_dim, (3, 3), strides=stride, padding=1, rngs=rngs)
        else:
            self.resample = None
        self.conv = _conv3(neck_dim, fusion_dim, rngs, use_bias=False)

    def __call__(self, features: Float[Array, "b p q c"]) -> Float[Array, "b y x d"]:
        projected = self.project(features)
        return self.conv(self.resample(projected) if self.resample else projected)


class Enlarge(nnx.Module):
    """Transposed convolution whose stride is its kernel size: every pixel becomes its own factor x factor tile."""

    def __init__(self, dim: int, factor: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), (factor, factor, dim, dim)))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "b p q c"]) -> Float[Array, "b y x c"]:
        batch, rows, cols, dim = x.shape
        factor = self.kernel.shape[0]
        tiles = jnp.einsum("bpqc,yxcd->bpyqxd", x, self.kernel[...])
        return tiles.reshape(batch, rows * factor, cols * factor, dim) + self.bias


class Fuse(nnx.Module):
    """Adds a pyramid level to what came from below it, refines, and enlarges to the next level's size."""

    def __init__(self, dim: int, *, has_skip: bool, rngs: nnx.Rngs):
        self.skip = Residual(dim, rngs=rngs) if has_skip else None
        self.refine = Residual(dim, rngs=rngs)
        self.project = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, level: Float[Array, "b p q c"], below: Float[Array, "b p q c"] | None, size: tuple[int, int]):
        merged = level if below is None or self.skip is None else below + self.skip(level)
        # Interpolating is linear and the projection acts per pixel: the order of the two does not matter, and
        # projecting first costs a quarter.
        return resize(self.project(self.refine(merged)), *size, "linear_corners")


class Residual(nnx.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv1 = _conv3(dim, dim, rngs)
        self.conv2 = _conv3(dim, dim, rngs)

    def __call__(self, x: Float[Array, "b p q c"]) -> Float[Array, "b p q c"]:
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


def _conv3(dim_in: int, dim_out: int, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Conv:
    return nnx.Conv(dim_in, dim_out, (3, 3), padding=1, use_bias=use_bias, rngs=rngs)

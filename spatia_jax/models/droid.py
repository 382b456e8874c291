"""DROID-SLAM's network (arXiv 2108.10869): features, and the recurrent operator that corrects where pixels have moved.

Images become features at an eighth of the resolution. An edge of the frame graph carries a hidden state per pixel; each
step reads the correlation around where the current poses and depths put the pixel, and answers with a correction of
that place, its confidence, a damping of the depth, and the weights of a convex upsampling of depth. What is done with
the answers is bundle adjustment (`spatia_jax.mapper`). Same parameters as the released `droid.pth` (weights/droid.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from spatia_jax.errors import InputError

_IMAGENET_MEAN = np.asarray((0.485, 0.456, 0.406), np.float32)
_IMAGENET_STD = np.asarray((0.229, 0.224, 0.225), np.float32)
_MAX_MOTION = 64.0  # pixels at 1/8; larger inputs are cut
_DAMPING = 0.01  # of the softplus that gives eta
STRIDE = 8  # pixels of the image per pixel of the features


@dataclass(frozen=True)
class DroidConfig:
    """Size of the network; the defaults are the released ones.

    Attributes:
        widths: channels of the encoders' three levels, at 1/2, 1/4 and 1/8.
        feature_dim: channels that are correlated.
        hidden_dim: channels of the recurrent state, and of its constant input.
        motion_dim: channels into which coordinates and residuals are encoded.
        num_levels, radius: of the correlation lookup.
    """

    widths: tuple[int, int, int] = (32, 64, 128)
    feature_dim: int = 128
    hidden_dim: int = 128
    motion_dim: int = 64
    num_levels: int = 4
    radius: int = 3

    def __post_init__(self):
        if self.num_levels < 1 or self.radius < 0:
            raise InputError(f"num_levels {self.num_levels} must be at least 1, radius {self.radius} at least 0")

    @property
    def correlation_dim(self) -> int:
        """Channels of a lookup."""
        return self.num_levels * (2 * self.radius + 1) ** 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Features:
    """What the encoders say of n images; rows and columns are those of the image over 8.

    Attributes:
        correlated: [n, h, w, feature_dim].
        hidden: [n, h, w, hidden_dim] first state of the edges that leave the frame.
        context: [n, h, w, hidden_dim] their constant input.
    """

    correlated: Array
    hidden: Array
    context: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Correction:
    """One step's answer for e edges and n frames.

    Attributes:
        hidden: [e, h, w, hidden_dim] the next state.
        delta: [e, h, w, 2] what to add to the pixel coordinates (u, v) in the target frame.
        weight: [e, h, w, 2] confidence in (0, 1), of either coordinate.
        eta: [n, h, w] damping of inverse depth.
        upmask: [n, h, w, 9 * 64] logits for `upsample`.
    """

    hidden: Array
    delta: Array
    weight: Array
    eta: Array
    upmask: Array


class DroidNetwork(nnx.Module):
    """Encoders and update operator."""

    def __init__(self, config: DroidConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.fnet = Encoder(config.widths, config.feature_dim, "instance", rngs=rngs)
        self.cnet = Encoder(config.widths, 2 * config.hidden_dim, "none", rngs=rngs)
        self.update = UpdateOperator(config, rngs=rngs)

    def encode(self, images: Float[Array, "n h w 3"]) -> Features:
        """Features of RGB images in [-1, 1], whose sides are multiples of 8."""
        if images.shape[1] % STRIDE or images.shape[2] % STRIDE:
            raise InputError(f"images of {images.shape[2]} x {images.shape[1]} pixels; sides must be multiples of 8")
        inputs = ((images + 1) / 2 - _IMAGENET_MEAN) / _IMAGENET_STD
        hidden, context = jnp.split(self.cnet(inputs), 2, axis=-1)
        return Features(self.fnet(inputs), jnp.tanh(hidden), jax.nn.relu(context))


class Encoder(nnx.Module):
    """Residual network to 1/8 of the resolution."""

    def __init__(
        self, widths: tuple[int, int, int], dim_out: int, norm: Literal["instance", "none"], *, rngs: nnx.Rngs
    ):
        self.norm = norm
        self.conv1 = nnx.Conv(3, widths[0], (7, 7), strides=2, padding=3, rngs=rngs)
        before = widths[0]
        for level, width in enumerate(widths, start=1):
            for index in range(2):
                stride = 2 if level > 1 and index == 0 else 1
                setattr(self, f"layer{level}_{index}", Residual(before, width, stride, norm, rngs=rngs))
                before = width
        self.conv2 = nnx.Conv(before, dim_out, (1, 1), rngs=rngs)

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n y x c"]:
        x = jax.nn.relu(_normalise(self.conv1(images), self.norm))
        for level in (1, 2, 3):
            for index in range(2):
                x = getattr(self, f"layer{level}_{index}")(x)
        return self.conv2(x)


class Residual(nnx.Module):
    """Two 3 x 3 convolutions beside the identity, or beside a 1 x 1 convolution where the resolution halves."""

    def __init__(self, dim_in: int, dim_out: int, stride: int, norm: str, *, rngs: nnx.Rngs):
        self.norm = norm
        self.conv1 = nnx.Conv(dim_in, dim_out, (3, 3), strides=stride, padding=1, rngs=rngs)
        self.conv2 = _conv3(dim_out, dim_out, rngs)
        self.downsample = nnx.Conv(dim_in, dim_out, (1, 1), strides=stride, rngs=rngs) if stride > 1 else None

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n y x d"]:
        y = jax.nn.relu(_normalise(self.conv1(x), self.norm))
        y = jax.nn.relu(_normalise(self.conv2(y), self.norm))
        return jax.nn.relu(y + (x if self.downsample is None else _normalise(self.downsample(x), self.norm)))


class UpdateOperator(nnx.Module):
    """One recurrent step on the edges of a frame graph."""

    def __init__(self, config: DroidConfig, *, rngs: nnx.Rngs):
        dim = config.hidden_dim
        self.corr1 = nnx.Conv(config.correlation_dim, dim, (1, 1), rngs=rngs)
        self.corr2 = _conv3(dim, dim, rngs)
        self.flow1 = nnx.Conv(4, dim, (7, 7), padding=3, rngs=rngs)
        self.flow2 = _conv3(dim, config.motion_dim, rngs)
        self.gru = GlobalGRU(dim, 2 * dim + config.motion_dim, rngs=rngs)
        self.delta1, self.delta2 = _conv3(dim, dim, rngs), _conv3(dim, 2, rngs)
        self.weight1, self.weight2 = _conv3(dim, dim, rngs), _conv3(dim, 2, rngs)
        self.agg1, self.agg2 = _conv3(dim, dim, rngs), _conv3(dim, dim, rngs)
        self.eta = _conv3(dim, 1, rngs)
        self.upmask = nnx.Conv(dim, 9 * STRIDE**2, (1, 1), rngs=rngs)

    def __call__(
        self,
        hidden: Float[Array, "e h w c"],
        context: Float[Array, "e h w c"],
        correlation: Float[Array, "e h w k"],
        motion: Float[Array, "e h w 4"],
        sources: Int[Array, " e"],
        num_frames: int,
    ) -> Correction:
        """
        Args:
            hidden: state of every edge; at first the one that the encoder gives the edge's source frame.
            context: of the edge's source frame.
            correlation: lookup at the current coordinates.
            motion: how far the pixel is from where it was (u, v), and the last target minus the current coordinates.
            sources: the frame that each edge leaves; numbers outside 0..num_frames-1 take no part in eta and upmask.
            num_frames: n.
        """
        relu = jax.nn.relu
        motion = jnp.clip(motion, -_MAX_MOTION, _MAX_MOTION)
        seen = relu(self.corr2(relu(self.corr1(correlation))))
        moved = relu(self.flow2(relu(self.flow1(motion))))
        hidden = self.gru(hidden, jnp.concatenate([context, seen, moved], axis=-1))
        delta = self.delta2(relu(self.delta1(hidden)))
        weight = jax.nn.sigmoid(self.weight2(relu(self.weight1(hidden))))

        leaving = relu(self.agg1(hidden))
        total = jax.ops.segment_sum(leaving, sources, num_frames)
        count = jax.ops.segment_sum(jnp.ones(len(sources)), sources, num_frames)
        frames = relu(self.agg2(total / jnp.maximum(count, 1)[:, None, None, None]))
        eta = _DAMPING * jax.nn.softplus(self.eta(frames)[..., 0])
        return Correction(hidden, delta, weight, eta, self.upmask(frames))


class GlobalGRU(nnx.Module):
    """Convolutional gated recurrent unit whose gates also see a gated mean of the state over the image."""

    def __init__(self, dim: int, dim_in: int, *, rngs: nnx.Rngs):
        both = dim + dim_in
        self.convz, self.globalz = _conv3(both, dim, rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.convr, self.globalr = _conv3(both, dim, rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.convq, self.globalq = _conv3(both, dim, rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.attend = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, hidden: Float[Array, "e h w c"], inputs: Float[Array, "e h w d"]) -> Float[Array, "e h w c"]:
        mean = (jax.nn.sigmoid(self.attend(hidden)) * hidden).mean((1, 2), keepdims=True)
        both = jnp.concatenate([hidden, inputs], axis=-1)
        z = jax.nn.sigmoid(self.convz(both) + self.globalz(mean))
        r = jax.nn.sigmoid(self.convr(both) + self.globalr(mean))
        q = jnp.tanh(self.convq(jnp.concatenate([r * hidden, inputs], axis=-1)) + self.globalq(mean))
        return (1 - z) * hidden + z * q


def upsample(values: Float[Array, "n h w"], upmask: Float[Array, "n h w c"]) -> Float[Array, "n y x"]:
    """Eight times the resolution; every fine pixel is a convex combination of the 3 x 3 coarse ones around it.

    Args:
        values: disparities; zero counts as their continuation beyond the border, as in the original.
        upmask: [n, h, w, 9 * 64] logits: neighbour outermost, then row, then column of the fine pixel.
    """
    n, h, w = values.shape
    padded = jnp.pad(values, ((0, 0), (1, 1), (1, 1)))
    near = jnp.stack([padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)], axis=-1)
    share = jax.nn.softmax(upmask.reshape(n, h, w, 9, STRIDE, STRIDE), axis=3)
    fine = jnp.einsum("nhwk,nhwkyx->nhywx", near, share)
    return fine.reshape(n, h * STRIDE, w * STRIDE)


def _normalise(x: Float[Array, "n h w c"], norm: str) -> Float[Array, "n h w c"]:
    """Zero mean and unit variance of every channel of every image, without parameters; or nothing."""
    if norm == "none":
        return x
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean((1, 2), keepdims=True) + 1e-5)


def _conv3(dim_in: int, dim_out: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(dim_in, dim_out, (3, 3), padding=1, rngs=rngs)

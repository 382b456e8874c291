"""Layers of the causal video autoencoder (Wan2.2 "38", spec 2.8): convolutions that look only back, and resampling.

Every layer maps consecutive frames [b, t, h, w, c] to consecutive frames and sees the past through a `Stream`, so that
one code path serves a whole clip in one call and a long video chunk by chunk, with equal numbers. A temporal stage
halves or doubles all frames but the first of the video, which stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

Frames = Float[Array, "b t h w c"]
Widened = Float[Array, "b t h w d"]

Cut = Callable[[Frames, int], Frames]
"""Frames at a level of resolution (see `Level`) to the part of them that is needed there."""

_IMAGES = ("NHWC", "HWIO", "NHWC")
_VIDEOS = ("NDHWC", "DHWIO", "NDHWC")


class Stream:
    """The past of each causal layer, in the order in which the layers are called.

    Arguments:
        past: `carry` of the stream that ended just before these frames; None at the first frame of a video.

    Attributes:
        carry: what the next chunk needs: for each causal layer its last inputs. Complete after the network has run; its
            shapes do not depend on the length of the chunk, so it can be the carry of a `lax.scan`.
    """

    def __init__(self, past: Sequence[Array] | None = None):
        self.at_start = past is None
        self.carry: list[Array] = []
        self._past = iter(past or ())

    def extend(self, frames: Frames, length: int, before: Array | None = None) -> Float[Array, "b u h w c"]:
        """Frames with the `length` frames before them in front.

        At the start of a video these are `before`, or none: then the layer takes what is missing as zeros.
        """
        known = before if self.at_start else next(self._past)
        extended = frames if known is None else jnp.concatenate([known, frames], axis=1)
        self.carry.append(_pad_front(extended, max(length - extended.shape[1], 0))[:, -length:])
        return extended


def whole_frame(frames: Frames, level: int) -> Frames:
    """The `Cut` that keeps everything."""
    return frames


def causal_conv(frames: Frames, kernel: Float[Array, "3 3 3 c d"], context: int) -> Float[Array, "b u h w d"]:
    """Convolution over time and space: output i sees frames i-2, i-1, i; what lies before `frames` is zero.

    Arguments:
        frames: [b, context + u, h, w, c], of which the first `context` (0 or 2) are past and get no output.
        kernel: time taps oldest first.

    On CPU ([4, 9, 24, 24, 48] to 48 channels, 2 cores, jax 0.10.2), XLA runs its 3D convolution at 88 GFLOP/s forward
    and 65 backward, the sum of one 2D convolution per time tap at 213 and 208, im2col and a matmul at 43 and 64. Taps
    also skip what meets only zeros: a single frame costs a third. At the released widths, on one core, taps ran at 201
    (64 x 64 pixels, 256 channels) and 187 (32 x 32, 512), im2col at 84 and 125; only frames much smaller than any that
    is released turn it around (16 x 16, 1024 channels: 110 to 158; 8 x 8: 31 to 140). Other backends are unmeasured.
    """

    def convolve_space(frames: Array, tap: Array) -> Array:
        out = lax.conv_general_dilated(_fold_time(frames), tap, (1, 1), "SAME", dimension_numbers=_IMAGES)
        return out.reshape(*frames.shape[:-1], tap.shape[-1])

    def convolve_space_time(frames: Array, kernel: Array) -> Array:
        padding = ((len(kernel) - 1 - context, 0), (1, 1), (1, 1))
        return lax.conv_general_dilated(frames, kernel, (1, 1, 1), padding, dimension_numbers=_VIDEOS)

    def sum_of_taps(frames: Array, kernel: Array) -> Array:
        return _sum_over_taps(convolve_space, frames, kernel, context)

    return lax.platform_dependent(frames, kernel, cpu=sum_of_taps, default=convolve_space_time)


def _sum_over_taps(apply: Callable[[Array, Array], Array], frames: Array, kernel: Array, context: int) -> Array:
    """Causal convolution as one product per time tap; a tap is not applied to the zeros before the first frame."""
    total = frames.shape[1]
    out = apply(frames[:, context:], kernel[-1])
    for back in range(1, min(len(kernel), total)):
        product = apply(frames[:, max(context - back, 0) : total - back], kernel[-1 - back])
        out = out + _pad_front(product, max(back - context, 0))
    return out


def _pad_front(frames: Array, count: int) -> Array:
    return jnp.pad(frames, ((0, 0), (count, 0), (0, 0), (0, 0), (0, 0))) if count else frames


def _fold_time(frames: Array) -> Array:
    return frames.reshape(-1, *frames.shape[2:])


def average_down(frames: Frames, channels: int, time: int, space: int) -> Float[Array, "b u p q d"]:
    """Shortcut of an encoder stage: blocks of time x space x space become channels, of which groups are averaged.

    An incomplete first block (the first frame of a video) is filled up with zero frames in front.
    """
    frames = _pad_front(frames, -frames.shape[1] % time)
    b, t, h, w, c = frames.shape
    blocks = frames.reshape(b, t // time, time, h // space, space, w // space, space, c)
    blocks = blocks.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(*blocks.shape[:4], channels, -1).mean(axis=-1)


def duplicate_up(
    frames: Frames, channels: int, time: int, space: int, *, at_start: bool
) -> Float[Array, "b u h2 w2 d"]:
    """Shortcut of a decoder stage, counterpart of `average_down`: channels are repeated and unfolded into blocks.

    The first frame of a video (`at_start`) becomes one frame, not `time`.
    """
    b, t, h, w, c = frames.shape
    repeated = jnp.repeat(frames, channels * time * space**2 // c, axis=-1)
    blocks = repeated.reshape(b, t, h, w, channels, time, space, space).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    out = blocks.reshape(b, t * time, h * space, w * space, channels)
    return out[:, time - 1 :] if at_start else out


def upsample_conv(images: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "n h2 w2 d"]:
    """3x3 convolution ("SAME") of the images enlarged x2 by repetition, at 4/9 of the products.

    Each of the four pixels that one pixel becomes sees only 2x2 different input pixels: its kernel is 2x2 sums of taps.
    """
    first, middle, last = kernel
    rows = jnp.stack([jnp.stack([first, middle + last]), jnp.stack([first + middle, last])])  # [row phase, 2, 3, c, d]
    left, center, right = jnp.moveaxis(rows, 2, 0)
    phases = jnp.stack([jnp.stack([left, center + right], 2), jnp.stack([left + center, right], 2)], 1)
    # phases: [row phase, column phase, 2, 2, c, d]; one product makes all four as channels. A matrix product of
    # shifted images, since XLA's CPU gradient of a 2x2 kernel is 27 times slower (231 to 8.5 ms at [72, 8, 8, 64]).
    stacked = phases.transpose(2, 3, 4, 0, 1, 5).reshape(4 * kernel.shape[2], -1)
    n, h, w, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)]
    out = (jnp.concatenate(shifted, axis=-1) @ stacked).reshape(n, h + 1, w + 1, 2, 2, -1)
    even = jnp.stack([out[:, :h, :w, 0, 0], out[:, :h, 1:, 0, 1]], axis=3)
    odd = jnp.stack([out[:, 1:, :w, 1, 0], out[:, 1:, 1:, 1, 1]], axis=3)
    return jnp.stack([even, odd], axis=2).reshape(n, 2 * h, 2 * w, -1)


_LECUN = nnx.initializers.lecun_normal()


class CausalConv(nnx.Module):
    """3x3x3 convolution, causal in time; with `size` 1 a linear map of each pixel."""

    def __init__(self, inputs: int, outputs: int, *, size: int = 3, init: Callable = _LECUN, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs.params(), (size, size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, frames: Frames, stream: Stream) -> Widened:
        if self.kernel.shape[0] == 1:
            return frames @ self.kernel[0, 0, 0] + self.bias[...]
        extended = stream.extend(frames, 2)
        return causal_conv(extended, self.kernel[...], extended.shape[1] - frames.shape[1]) + self.bias[...]


class RMSNorm(nnx.Module):
    """Channels scaled to root mean square 1, then by `scale`."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        return (x * lax.rsqrt(jnp.maximum(square, 1e-12))).astype(x.dtype) * self.scale[...]


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv; the shortcut is a linear map where the width changes.

    Starts as its shortcut alone (the second convolution at zero), so that training begins with a linear autoencoder.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(inputs)
        self.conv1 = CausalConv(inputs, outputs, rngs=rngs)
        self.norm2 = RMSNorm(outputs)
        self.conv2 = CausalConv(outputs, outputs, init=nnx.initializers.zeros, rngs=rngs)
        self.shortcut = nnx.Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, frames: Frames, stream: Stream) -> Widened:
        hidden = self.conv1(jax.nn.silu(self.norm1(frames)), stream)
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)), stream)
        return hidden + (frames if self.shortcut is None else self.shortcut(frames))


class SpatialAttention(nnx.Module):
    """Residual self-attention with one head among the pixels of each frame."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(channels)
        self.qkv = nnx.Linear(channels, 3 * channels, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, frames: Frames) -> Frames:
        b, t, h, w, c = frames.shape
        qkv = self.qkv(self.norm(frames)).reshape(b * t, h * w, 1, 3 * c)
        attended = jax.nn.dot_product_attention(*jnp.split(qkv, 3, axis=-1))
        return frames + self.out(attended.reshape(frames.shape))


class MiddleBlocks(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.before = ResidualBlock(channels, channels, rngs=rngs)
        self.attention = SpatialAttention(channels, rngs=rngs)
        self.after = ResidualBlock(channels, channels, rngs=rngs)

    def __call__(self, frames: Frames, stream: Stream) -> Frames:
        return self.after(self.attention(self.before(frames, stream)), stream)


class TimeConv(nnx.Module):
    """Weights of a convolution over three consecutive frames at each pixel, time taps oldest first."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))


class Downsample(nnx.Module):
    """Halves height and width (`space` 2), and with `time` 2 the number of frames after the first."""

    def __init__(self, channels: int, time: int, space: int, *, rngs: nnx.Rngs):
        padding = ((0, 1), (0, 1)) if space == 2 else "SAME"
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=space, padding=padding, rngs=rngs)
        self.time_conv = TimeConv(channels, channels, rngs=rngs) if time == 2 else None

    def __call__(self, frames: Frames, stream: Stream) -> Float[Array, "b u p q c"]:
        frames = self.conv(frames)
        if self.time_conv is None:
            return frames
        if not stream.at_start:
            return _halve(stream.extend(frames, 1), self.time_conv)
        first, rest = frames[:, :1], frames[:, 1:]
        return jnp.concatenate([first, _halve(stream.extend(rest, 1, before=first), self.time_conv)], axis=1)


def _halve(frames: Frames, conv: TimeConv) -> Float[Array, "b u h w c"]:
    """One frame for each two; the frame before them, which the oldest tap sees, comes first."""
    pairs = frames.shape[1] // 2
    return sum((frames[:, i : i + 2 * pairs : 2] @ tap for i, tap in enumerate(conv.kernel[...])), conv.bias[...])


class Upsample(nnx.Module):
    """Doubles height and width (`space` 2), and with `time` 2 the number of frames after the first.

    The first frame takes no part in the convolution over time, not even as the past of the second.
    """

    def __init__(self, channels: int, time: int, space: int, *, rngs: nnx.Rngs):
        self.space = space
        self.conv = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.time_conv = TimeConv(channels, 2 * channels, rngs=rngs) if time == 2 else None

    def __call__(self, frames: Frames, stream: Stream) -> Float[Array, "b u h2 w2 c"]:
        if self.time_conv is not None:
            alone = 1 if stream.at_start else 0
            frames = jnp.concatenate([frames[:, :alone], _double(frames[:, alone:], stream, self.time_conv)], axis=1)
        if self.space == 1:
            return self.conv(frames)
        b, t, h, w, _ = frames.shape
        kernel: Array = self.conv.kernel[...]
        images = upsample_conv(_fold_time(frames), kernel) + self.conv.bias[...]  # type: ignore[index]
        return images.reshape(b, t, 2 * h, 2 * w, -1)


def _double(frames: Frames, stream: Stream, conv: TimeConv) -> Float[Array, "b u h w c"]:
    """Two frames for each one: the convolution's channels are those of both."""
    b, t, h, w, c = frames.shape
    extended = stream.extend(frames, 2)
    pairs = _sum_over_taps(jnp.matmul, extended, conv.kernel[...], extended.shape[1] - t)
    pairs = (pairs + conv.bias[...]).reshape(b, t, h, w, 2, c)
    return jnp.moveaxis(pairs, 4, 2).reshape(b, 2 * t, h, w, c)

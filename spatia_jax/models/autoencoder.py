"""Causal video autoencoder: 1 + 4n frames to 1 + n latent frames and back (Wan2.2-VAE "38"; spec 2.8).

A clip goes through in one call (`encode`, `decode`), or frame group by frame group, and tile by tile, with the same
numbers and activations of constant size (`encode_streaming`, `decode_streaming`). Nothing depends on later frames.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from spatia_jax.errors import InputError
from spatia_jax.models.autoencoder_layers import (
    CausalConv,
    Cut,
    Downsample,
    MiddleBlocks,
    ResidualBlock,
    RMSNorm,
    Stream,
    Upsample,
    average_down,
    duplicate_up,
    whole_frame,
)
from spatia_jax.models.autoencoder_tiles import Level, in_tiles, in_time

# fmt: off
RELEASED_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
RELEASED_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are the released Wan2.2-VAE.

    Attributes:
        dim, dec_dim: width unit of encoder and decoder.
        z_dim: latent channels.
        dim_mult: width of each encoder stage in units of `dim`, finest first; the decoder has them in reverse in units
            of `dec_dim`.
        num_res_blocks: residual blocks of an encoder stage; a decoder stage has one more.
        temporal_downsample: for each stage but the last, whether it halves the number of frames too.
        spatial_downsample: for each stage but the last, whether it halves height and width; all do when not given, as
            released. A small network is better off with larger patches: enlarging by repetition and convolution
            cannot place sub-pixels freely (docs/tiny.md).
        patch_size: side of the pixel squares that become channels before the first convolution.
        patch_kernel: size of that convolution, 3 as released, or 1: large patches need no neighbours to be read.
        latent_mean, latent_std: [z_dim] statistics that normalise the latents. When not given: the released ones at 48
            channels, else 0 and 1.
        streaming: whether `Model.encode` and `Model.decode` go through a video by `encode_streaming` and
            `decode_streaming`, so that their activations do not grow with its length or the batch (docs/scale.md).
        tile: latent rows and columns that streaming computes at a time; whole frames when not given.
    """

    dim: int = 160
    dec_dim: int = 256
    z_dim: int = 48
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    spatial_downsample: tuple[bool, ...] | None = None
    patch_size: int = 2
    patch_kernel: int = 3
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None
    streaming: bool = False
    tile: tuple[int, int] | None = None

    def __post_init__(self):
        if self.tile is not None and (not self.streaming or min(self.tile) < 1):
            raise InputError(
                f"tile is {self.tile} and streaming is {self.streaming}; a tile is rows and columns of latents, each"
                " at least 1, and needs streaming"
            )
        released = self.z_dim == len(RELEASED_MEAN)
        if self.latent_mean is None:
            object.__setattr__(self, "latent_mean", RELEASED_MEAN if released else (0.0,) * self.z_dim)
        if self.latent_std is None:
            object.__setattr__(self, "latent_std", RELEASED_STD if released else (1.0,) * self.z_dim)
        if self.spatial_downsample is None:
            object.__setattr__(self, "spatial_downsample", (True,) * (len(self.dim_mult) - 1))
        for name in ("temporal_downsample", "spatial_downsample"):
            if len(getattr(self, name)) != len(self.dim_mult) - 1:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} entries; dim_mult {self.dim_mult} asks for"
                    f" {len(self.dim_mult) - 1}, one for each stage but the last"
                )
        if not len(self.latent_mean) == len(self.latent_std) == self.z_dim:
            raise InputError(
                f"latent_mean and latent_std have {len(self.latent_mean)} and {len(self.latent_std)} entries;"
                f" z_dim asks for {self.z_dim}"
            )
        if self.patch_kernel not in (1, 3):
            raise InputError(f"patch_kernel is {self.patch_kernel}; it must be 1 or 3")
        for inputs, outputs, time, space in _encoder_stages(self):
            if inputs * time * space**2 % outputs:
                raise InputError(
                    f"dim_mult {self.dim_mult}: an encoder stage from {inputs} to {outputs} channels has no averaging"
                    f" shortcut; {inputs * time * space**2} must be a multiple of {outputs}"
                )
        for inputs, outputs, time, space in _decoder_stages(self)[:-1]:
            if outputs * time * space**2 % inputs:
                raise InputError(
                    f"dim_mult {self.dim_mult}: a decoder stage from {inputs} to {outputs} channels has no duplicating"
                    f" shortcut; {outputs * time * space**2} must be a multiple of {inputs}"
                )

    @property
    def time_factor(self) -> int:
        """Frames for each latent frame after the first."""
        return math.prod(time for time, _ in _factors(self))

    @property
    def space_factor(self) -> int:
        """Pixels for each latent row and column."""
        return self.patch_size * math.prod(space for _, space in _factors(self))


def _factors(config: AutoencoderConfig) -> list[tuple[int, int]]:
    pairs = zip(config.temporal_downsample, config.spatial_downsample or (), strict=True)
    return [(1 + temporal, 1 + spatial) for temporal, spatial in pairs]


def _encoder_stages(config: AutoencoderConfig) -> list[tuple[int, int, int, int]]:
    """(inputs, outputs, time factor, space factor) of each stage, in the order of the computation."""
    widths = [config.dim * m for m in (1, *config.dim_mult)]
    factors = [*_factors(config), (1, 1)]
    return [(i, o, *factor) for i, o, factor in zip(widths, widths[1:], factors, strict=False)]


def _decoder_stages(config: AutoencoderConfig) -> list[tuple[int, int, int, int]]:
    widths = [config.dec_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
    factors = [*reversed(_factors(config)), (1, 1)]
    return [(i, o, *factor) for i, o, factor in zip(widths, widths[1:], factors, strict=False)]


def _encoder_levels(config: AutoencoderConfig) -> list[Level]:
    """Where `Encoder.reduce` cuts: before the first convolution, before each stage, and at its end."""
    scale, margin, levels = 1, 0, [Level(1, 0)]
    for _, _, time, space in reversed(_encoder_stages(config)[:-1]):
        # With stride 2, output i sees 2i, 2i + 1, 2i + 2. Margins are even, so that windows begin at such an output.
        margin = 2 * margin + 1 if space == 2 else margin + (time == 2)
        margin, scale = margin + 2 * config.num_res_blocks, scale * space
        levels.append(Level(scale, margin + margin % 2))
    levels.append(Level(scale, margin + 1))
    return levels[::-1]


def _decoder_levels(config: AutoencoderConfig) -> list[Level]:
    """Where `Decoder.enlarge` cuts: before each stage, and at its end."""
    scale = config.space_factor // config.patch_size
    margin, levels = 1, [Level(scale, 0)]
    for _, _, time, space in reversed(_decoder_stages(config)):
        margin = margin // 2 + 1 if space == 2 else margin + (time == 2)
        margin, scale = margin + 2 * (config.num_res_blocks + 1), scale // space
        levels.append(Level(scale, margin))
    return levels[::-1]


def patchify(video: Float[Array, "b t h w c"], size: int) -> Float[Array, "b t p q d"]:
    """Squares of `size` pixels become channels, in the order colour, column, row."""
    b, t, h, w, c = video.shape
    squares = video.reshape(b, t, h // size, size, w // size, size, c)
    return squares.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, t, h // size, w // size, c * size**2)


def unpatchify(patches: Float[Array, "b t p q d"], size: int) -> Float[Array, "b t h w c"]:
    """Inverse of `patchify`."""
    b, t, p, q, d = patches.shape
    squares = patches.reshape(b, t, p, q, d // size**2, size, size)
    return squares.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, t, p * size, q * size, d // size**2)


def _residual_blocks(inputs: int, outputs: int, count: int, rngs: nnx.Rngs) -> list[ResidualBlock]:
    return [ResidualBlock(inputs if i == 0 else outputs, outputs, rngs=rngs) for i in range(count)]


class EncoderStage(nnx.Module):
    """Residual blocks and downsampling, beside an average-pool shortcut."""

    def __init__(self, inputs: int, outputs: int, time: int, space: int, num_blocks: int, *, rngs: nnx.Rngs):
        self.outputs, self.time, self.space = outputs, time, space
        self.blocks = nnx.data(_residual_blocks(inputs, outputs, num_blocks, rngs))
        self.resample = Downsample(outputs, time, space, rngs=rngs) if time * space > 1 else None

    def __call__(self, frames: Array, stream: Stream) -> Array:
        shortcut = average_down(frames, self.outputs, self.time, self.space)
        for block in self.blocks:
            frames = block(frames, stream)
        return shortcut + (frames if self.resample is None else self.resample(frames, stream))


class DecoderStage(nnx.Module):
    """Residual blocks and upsampling, beside a duplicating shortcut; the last stage has neither of the two."""

    def __init__(self, inputs: int, outputs: int, time: int, space: int, num_blocks: int, *, rngs: nnx.Rngs):
        self.outputs, self.time, self.space = outputs, time, space
        self.blocks = nnx.data(_residual_blocks(inputs, outputs, num_blocks, rngs))
        self.resample = Upsample(outputs, time, space, rngs=rngs) if time * space > 1 else None

    def __call__(self, frames: Array, stream: Stream) -> Array:
        entered = frames
        for block in self.blocks:
            frames = block(frames, stream)
        if self.resample is None:
            return frames
        shortcut = duplicate_up(entered, self.outputs, self.time, self.space, at_start=stream.at_start)
        return shortcut + self.resample(frames, stream)


class Encoder(nnx.Module):
    """Patches [b, t, h/s, w/s, 3 s^2] to features [b, f, p, q, 2 z_dim]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        stages = _encoder_stages(config)
        width = stages[-1][1]
        self.conv_in = CausalConv(3 * config.patch_size**2, config.dim, size=config.patch_kernel, rngs=rngs)
        self.stages = nnx.data([EncoderStage(*stage, config.num_res_blocks, rngs=rngs) for stage in stages])
        self.middle = MiddleBlocks(width, rngs=rngs)
        self.norm_out = RMSNorm(width)
        self.conv_out = CausalConv(width, 2 * config.z_dim, rngs=rngs)

    def __call__(self, patches: Array, stream: Stream) -> Array:
        return self.finish(self.reduce(patches, stream), stream)

    def trunk(self, patches: Array, stream: Stream) -> Array:
        """All before the last norm."""
        return self._mix(self.reduce(patches, stream), stream)

    def reduce(self, patches: Array, stream: Stream, cut: Cut = whole_frame) -> Array:
        """All that is local in space: to the resolution of the latents."""
        frames = patches
        for level, part in enumerate((self.conv_in, *self.stages[:-1])):
            frames = part(cut(frames, level), stream)
        return cut(frames, len(self.stages))

    def finish(self, frames: Array, stream: Stream) -> Array:
        """What follows `reduce`, with attention over the whole frame."""
        return self.conv_out(self.activate(self._mix(frames, stream)), stream)

    def _mix(self, frames: Array, stream: Stream) -> Array:
        return self.middle(self.stages[-1](frames, stream), stream)

    def activate(self, frames: Array) -> Array:
        """The last norm and its nonlinearity: what the last convolution sees."""
        return jax.nn.silu(self.norm_out(frames))


class Decoder(nnx.Module):
    """Features [b, f, p, q, z_dim] to patches [b, t, h/s, w/s, 3 s^2]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        stages = _decoder_stages(config)
        width = stages[-1][1]
        self.conv_in = CausalConv(config.z_dim, stages[0][0], rngs=rngs)
        self.middle = MiddleBlocks(stages[0][0], rngs=rngs)
        self.stages = nnx.data([DecoderStage(*stage, config.num_res_blocks + 1, rngs=rngs) for stage in stages])
        self.norm_out = RMSNorm(width)
        self.conv_out = CausalConv(width, 3 * config.patch_size**2, rngs=rngs)

    def __call__(self, features: Array, stream: Stream) -> Array:
        return self.enlarge(self.begin(features, stream), stream)

    def trunk(self, features: Array, stream: Stream) -> Array:
        """All before the last norm."""
        return self._grow(self.begin(features, stream), stream)

    def begin(self, features: Array, stream: Stream) -> Array:
        """All at the resolution of the latents that attends to the whole frame."""
        return self.middle(self.conv_in(features, stream), stream)

    def enlarge(self, frames: Array, stream: Stream, cut: Cut = whole_frame) -> Array:
        """What follows `begin`, local in space."""
        patches = self.conv_out(self.activate(self._grow(frames, stream, cut)), stream)
        return cut(patches, len(self.stages))

    def _grow(self, frames: Array, stream: Stream, cut: Cut = whole_frame) -> Array:
        for level, stage in enumerate(self.stages):
            frames = stage(cut(frames, level), stream)
        return frames

    def activate(self, frames: Array) -> Array:
        """The last norm and its nonlinearity: what the last convolution sees."""
        return jax.nn.silu(self.norm_out(frames))


class Autoencoder(nnx.Module):
    """Video in [-1, 1] to normalised latents and back.

    One latent frame holds the first frame, each further one the next `config.time_factor` frames. The networks compute
    in the type of their parameters; latents are float32.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.to_moments = nnx.Linear(2 * config.z_dim, 2 * config.z_dim, rngs=rngs)
        self.from_latents = nnx.Linear(config.z_dim, config.z_dim, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b f p q z"]:
        """Normalised mean latents of a whole video of 1 + n * time_factor frames in [-1, 1].

        Raises:
            InputError: the size is not a multiple of `space_factor`, or the number of frames does not fit.
        """
        return self.normalize(self.encode_moments(video)[0])

    def encode_moments(self, video: Float[Array, "b t h w 3"]) -> tuple[Array, Array]:
        """Mean and log-variance [b, f, p, q, z] of the latents, not normalised (for training)."""
        self._check_video(video)
        mean, log_variance = jnp.split(self.to_moments(self.encoder(self._to_patches(video), Stream())), 2, axis=-1)
        return mean, log_variance

    def decode(self, latents: Float[Array, "b f p q z"]) -> Float[Array, "b t h w 3"]:
        """Video of 1 + (f - 1) * time_factor frames from normalised latents; not clamped to [-1, 1]."""
        return self.decode_chunk(latents, None)[0]

    def encode_chunk(
        self, video: Float[Array, "b t h w 3"], carry: list[Array] | None
    ) -> tuple[Float[Array, "b f p q z"], list[Array]]:
        """Encodes the next frames of a video: with `carry` None its first 1 + n * time_factor, later n * time_factor.

        Returns:
            Normalised latents [b, n, p, q, z] ([b, 1 + n, ...] at the start), and the carry for the next chunk.
        """
        stream = Stream(carry)
        return self._finish(self._reduce(video, stream), stream), stream.carry

    def decode_chunk(
        self, latents: Float[Array, "b f p q z"], carry: list[Array] | None
    ) -> tuple[Float[Array, "b t h w 3"], list[Array]]:
        """Decodes the next latent frames of a video; `carry` is None at its first.

        Returns:
            Frames [b, f * time_factor, h, w, 3] (time_factor - 1 fewer at the start), and the carry for the next chunk.
        """
        stream = Stream(carry)
        return self._enlarge(self._begin(latents, stream), stream), stream.carry

    def encode_streaming(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b f p q z"]:
        """`encode` with the activations of `time_factor` frames of one video (and tile) in memory at a time.

        Only the features before attention, at the resolution of the latents, are kept for all times.

        Raises:
            InputError: like `encode`.
        """
        self._check_video(video)
        space = self.config.space_factor
        size = (video.shape[2] // space, video.shape[3] // space)

        def encode(video: Array) -> Array:
            def reduce(cut: Cut) -> Array:
                return in_time(functools.partial(self._reduce, cut=cut), video, self.config.time_factor)

            features = in_tiles(reduce, size, self.config.tile, _encoder_levels(self.config))
            return in_time(self._finish, features, 1)

        return lax.map(lambda one: encode(one[None])[0], video)

    def decode_streaming(self, latents: Float[Array, "b f p q z"]) -> Float[Array, "b t h w 3"]:
        """`decode` with the activations of one latent frame of one video (and tile) in memory at a time.

        Only the features behind attention, at the resolution of the latents, are kept for all times.
        """

        def decode(latents: Array) -> Array:
            features = in_time(self._begin, latents, 1)

            def enlarge(cut: Cut) -> Array:
                return in_time(functools.partial(self._enlarge, cut=cut), features, 1)

            size = (latents.shape[2], latents.shape[3])
            return in_tiles(enlarge, size, self.config.tile, _decoder_levels(self.config))

        return lax.map(lambda one: decode(one[None])[0], latents)

    def normalize(self, latents: Float[Array, "*n z"]) -> Float[Array, "*n z"]:
        """Latents of the network to zero mean and unit variance by the statistics of the config."""
        return (latents - jnp.asarray(self.config.latent_mean)) / jnp.asarray(self.config.latent_std)

    def denormalize(self, latents: Float[Array, "*n z"]) -> Float[Array, "*n z"]:
        """Inverse of `normalize`."""
        return latents * jnp.asarray(self.config.latent_std) + jnp.asarray(self.config.latent_mean)

    def _reduce(self, video: Array, stream: Stream, cut: Cut = whole_frame) -> Array:
        return self.encoder.reduce(self._to_patches(video), stream, cut)

    def _finish(self, features: Array, stream: Stream) -> Array:
        moments = self.to_moments(self.encoder.finish(features, stream))
        return self.normalize(jnp.split(moments, 2, axis=-1)[0])

    def _begin(self, latents: Array, stream: Stream) -> Array:
        features = self.denormalize(latents).astype(self.from_latents.kernel.dtype)
        return self.decoder.begin(self.from_latents(features), stream)

    def _enlarge(self, features: Array, stream: Stream, cut: Cut = whole_frame) -> Array:
        return unpatchify(self.decoder.enlarge(features, stream, cut), self.config.patch_size)

    def _to_patches(self, video: Array) -> Array:
        return patchify(video.astype(self.to_moments.kernel.dtype), self.config.patch_size)

    def _check_video(self, video: Array) -> None:
        _, t, h, w, _ = video.shape
        time, space = self.config.time_factor, self.config.space_factor
        if t % time != 1 % time or h % space or w % space:
            raise InputError(
                f"video of {t} frames, {h} x {w} pixels: the autoencoder takes 1 + {time} n frames,"
                f" and height and width in multiples of {space}"
            )

"""How many floating-point operations the networks need, by formula: what MFU is measured against.

A multiplication and an addition count as two. Counted are matrix products and convolutions, once, as the method needs
them: not what is computed again in the backward pass, not padding, not norms and other elementwise work (under 1 % at
the released sizes). The backward pass of a product is two more of its size, one for its input and one for its weights;
the second is not needed where weights are frozen, nor is either where nothing before the product is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from spatia_jax.models.autoencoder import AutoencoderConfig, _decoder_stages, _encoder_stages
from spatia_jax.models.text_encoder import TextEncoderConfig
from spatia_jax.models.transformer import TransformerConfig


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass: products with weights, and products of activations (attention)."""

    weights: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.weights + other.weights, self.attention + other.attention)

    def __mul__(self, count: float) -> Flops:
        return Flops(self.weights * count, self.attention * count)

    @property
    def forward(self) -> float:
        return self.weights + self.attention

    def training(self, *, frozen: bool = False) -> float:
        """With the backward pass: three times the forward one, less the gradients of weights that are frozen."""
        return (2 if frozen else 3) * self.weights + 3 * self.attention


@dataclass(frozen=True)
class ClipShape:
    """What the transformer is given for one example.

    Attributes:
        references, frames: latent frames, the second without references; only these have a projection.
        rows, columns: latent pixels.
        text_length: tokens.
        control: whether the control branch runs.
    """

    references: int
    frames: int
    rows: int
    columns: int
    text_length: int
    control: bool = True


@dataclass(frozen=True)
class TransformerFlops:
    """One pass of one example: the main branch, the control branch, and what comes before both."""

    main: Flops
    control: Flops

    @property
    def forward(self) -> float:
        return (self.main + self.control).forward

    def training(self, part: str = "all") -> float:
        """A forward and a backward pass.

        Args:
            part: what is trained: "all"; "control", to whose hints gradients pass through the frozen main branch; or
                "lora" on the main branch, before which nothing of the control branch depends on what is trained. The
                products of a LoRA's own factors are left out, as small.
        """
        match part:
            case "all":
                return (self.main + self.control).training()
            case "control":
                return self.main.training(frozen=True) + self.control.training()
            case "lora":
                return self.main.training(frozen=True) + self.control.forward
        raise ValueError(f"{part!r} is no part that can be trained")


def transformer_flops(config: TransformerConfig, shape: ClipShape) -> TransformerFlops:
    """Operations of the transformer, one example, guidance not counted (twice that)."""
    dim, (_, height, width) = config.dim, config.patch_size
    patch, frame = height * width, shape.rows // height * (shape.columns // width)
    frames, text = shape.references + shape.frames, shape.text_length
    tokens = frames * frame

    def block(length: int) -> Flops:
        attention = 8 * length * dim**2  # q, k, v, o
        cross = 4 * (length + text) * dim**2  # q, o of tokens; k, v of the text
        return Flops(attention + cross + 4 * length * dim * config.ffn_dim, 4 * length * dim * (length + text))

    embedding = 2 * tokens * patch * config.in_dim * dim
    text_embedding = 2 * text * dim * (config.text_dim + dim)
    time = 2 * frames * dim * (config.freq_dim + 7 * dim)
    head = 2 * tokens * dim * patch * config.out_dim
    main = block(tokens) * config.num_layers + Flops(embedding + text_embedding + time + head)
    if not shape.control or not config.control_layers:
        return TransformerFlops(main, Flops())
    length, count = shape.frames * frame, len(config.control_layers)
    projections = 2 * length * (patch * config.control_in_dim * dim + (1 + count) * dim**2)
    return TransformerFlops(main, block(length) * count + Flops(projections))


def text_encoder_flops(config: TextEncoderConfig, length: int) -> Flops:
    """One text of `length` tokens."""
    layer = Flops(
        2 * length * config.dim * (4 * config.attention_dim + 3 * config.ffn_dim),
        4 * length**2 * config.attention_dim,
    )  # fmt: skip
    return layer * config.num_layers


def encoder_flops(config: AutoencoderConfig, frames: int, height: int, width: int) -> Flops:
    """Encoding one video of 1 + 4n frames."""
    at = _Grid(frames, height // config.patch_size, width // config.patch_size)
    total = at.conv(3 * config.patch_size**2, config.dim, config.patch_kernel)
    for inputs, outputs, time, space in _encoder_stages(config):
        total += at.residual(inputs, outputs, config.num_res_blocks)
        if time * space > 1:
            at = _Grid(at.frames, at.rows // space, at.columns // space)
            total += at.linear(outputs, outputs) * 9
        if time == 2:
            at = _Grid(1 + (at.frames - 1) // 2, at.rows, at.columns)
            total += _Grid(at.frames - 1, at.rows, at.columns).linear(outputs, outputs) * 3
    total += at.middle(outputs)
    return total + at.conv(outputs, 2 * config.z_dim) + at.linear(2 * config.z_dim, 2 * config.z_dim)


def decoder_flops(config: AutoencoderConfig, latent_frames: int, rows: int, columns: int) -> Flops:
    """Decoding one video of so many latent frames of rows x columns."""
    at, stages = _Grid(latent_frames, rows, columns), _decoder_stages(config)
    outputs = stages[0][0]
    total = at.linear(config.z_dim, config.z_dim) + at.conv(config.z_dim, outputs) + at.middle(outputs)
    for inputs, outputs, time, space in stages:
        total += at.residual(inputs, outputs, config.num_res_blocks + 1)
        if time == 2:
            rest = _Grid(at.frames - 1, at.rows, at.columns)
            total += rest.linear(outputs, 2 * outputs) * 3
            at = _Grid(1 + 2 * rest.frames, at.rows, at.columns)
        if time * space > 1:
            # Enlarged by repetition, a pixel sees 2 x 2 different ones of 3 x 3 (autoencoder_layers.upsample_conv).
            at = _Grid(at.frames, at.rows * space, at.columns * space)
            total += at.linear(outputs, outputs) * (4 if space == 2 else 9)
    return total + at.conv(outputs, 3 * config.patch_size**2)


@dataclass(frozen=True)
class _Grid:
    """Frames of rows x columns, on which layers of the autoencoder work."""

    frames: int
    rows: int
    columns: int

    def linear(self, inputs: int, outputs: int) -> Flops:
        return Flops(2.0 * inputs * outputs * self.frames * self.rows * self.columns)

    def conv(self, inputs: int, outputs: int, size: int = 3) -> Flops:
        """Causal in time; taps that meet only the zeros around the frames are not needed."""
        if size == 1:
            return self.linear(inputs, outputs)
        taps = max(3 * self.frames - 3, 1) * (3 * self.rows - 2) * (3 * self.columns - 2)
        return Flops(2.0 * inputs * outputs * taps)

    def residual(self, inputs: int, outputs: int, count: int) -> Flops:
        shortcut = self.linear(inputs, outputs) if inputs != outputs else Flops()
        return self.conv(inputs, outputs) + shortcut + self.conv(outputs, outputs) * (2 * count - 1)

    def middle(self, channels: int) -> Flops:
        """Two residual blocks, and attention among the pixels of each frame."""
        products = Flops(attention=4.0 * self.frames * (self.rows * self.columns) ** 2 * channels)
        return self.residual(channels, channels, 2) + self.linear(channels, channels) * 4 + products

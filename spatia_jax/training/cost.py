"""What a step of stage 1 or 2 is worth in tokens and model FLOPs."""

from __future__ import annotations

import jax

from spatia_jax.model import Model
from spatia_jax.parallel.flops import ClipShape, encoder_flops, text_encoder_flops, transformer_flops
from spatia_jax.training.log import StepCost
from spatia_jax.training.options import FitConfig

# bfloat16 FLOP/s of one device, dense, as its maker states them, by the name that JAX gives it.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def clip_shape(model: Model, *, opening: bool) -> ClipShape:
    """What the transformer is given for a training clip."""
    clip, autoencoder = model.config.clip, model.config.autoencoder
    frames = clip.opening_frames if opening else clip.continuing_frames
    return ClipShape(
        references=0 if opening else clip.references,
        frames=1 + (frames - 1) // autoencoder.time_factor,
        rows=clip.height // autoencoder.space_factor,
        columns=clip.width // autoencoder.space_factor,
        text_length=clip.text_length,
    )


def trained_part(config: FitConfig) -> str:
    """ "all", "control" or "lora": what `flops.TransformerFlops.training` calls that which is trained."""
    names = {path.split(".")[0] if path != "transformer.control" else "control" for path in config.train_only}
    return names.pop() if names in ({"lora"}, {"control"}) else "all"


def example_flops(model: Model, config: FitConfig, *, opening: bool) -> float:
    """Forward and backward pass for one clip, and, where they are in the step, the text encoder and the encodings."""
    shape, experiment = clip_shape(model, opening=opening), model.config
    part = trained_part(config)
    total = transformer_flops(experiment.transformer, shape).training(part)
    text = text_encoder_flops(experiment.text_encoder, shape.text_length)
    total += text.training() if part == "all" and not config.train_only else text.forward
    if experiment.training.latents == "on_the_fly":
        clip = experiment.clip
        frames = clip.opening_frames if opening else clip.continuing_frames
        video = encoder_flops(experiment.autoencoder, frames, clip.height, clip.width).forward
        alone = encoder_flops(experiment.autoencoder, 1, clip.height, clip.width).forward
        total += 3 * video + shape.references * alone  # the video, the projection, the hole mask
    return total


def stage_cost(model: Model, stage: str, config: FitConfig) -> StepCost:
    """The mean over the kinds of clips that a stage sees."""
    share = 1.0 if stage == "stage1" else model.config.training.opening_share
    tokens = flops = 0.0
    for opening, weight in ((True, share), (False, 1.0 - share)):
        shape, (_, height, width) = clip_shape(model, opening=opening), model.config.transformer.patch_size
        frame = (shape.rows // height) * (shape.columns // width)
        tokens += weight * config.batch_size * (shape.references + shape.frames) * frame
        flops += weight * config.batch_size * example_flops(model, config, opening=opening)
    return StepCost(tokens, flops, PEAK_FLOPS.get(jax.devices()[0].device_kind))

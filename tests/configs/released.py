"""configs/spatia_5b.py at small widths and a small picture: all layers of the released networks, few numbers in each.

The text encoder has the vocabulary of the embedded tokenizer, which stands in for the released one.
"""

import dataclasses
from pathlib import Path

from weights.synthetic_release import RANK, SIZES

from spatia_jax.config import ClipConfig, load_experiment
from spatia_jax.diffusion import SamplerConfig
from spatia_jax.models.lora import LoraConfig


def experiment():
    released = load_experiment(Path(__file__).parents[2] / "configs" / "spatia_5b.py")
    return dataclasses.replace(
        released,
        name="released_small",
        clip=ClipConfig(
            height=32, width=64, fps=24, opening_frames=9, new_frames=8, history_frames=9, references=2,
            target_stride=4, reference_stride=2, text_length=12,
        ),
        autoencoder=SIZES.autoencoder,
        transformer=SIZES.transformer,
        text_encoder=SIZES.text_encoder,
        depth=SIZES.depth,
        memory=dataclasses.replace(released.memory, capacity=6000, bank_frames=8, map_stride=2, pixel_stride=1),
        sampler=SamplerConfig(solver="unipc", steps=3, shift=5.0),
        lora=LoraConfig(RANK, ("q", "up", "down")),
    )  # fmt: skip

"""Spatia as released: Wan2.2-TI2V-5B with Spatia's control branch and LoRA, at the released setting (spec 2.2 to 2.10).

Get and convert the weights first: docs/weights.md. `python -m spatia_jax.plan configs/spatia_5b.py` says what it needs.
"""

from spatia_jax.config import ClipConfig, Experiment, MemoryConfig
from spatia_jax.diffusion import FlowConfig, SamplerConfig, Velocity
from spatia_jax.mapper import MapperConfig
from spatia_jax.memory import CovisibleAssignment, RetrievalConfig
from spatia_jax.models.autoencoder import AutoencoderConfig
from spatia_jax.models.depth import DepthConfig
from spatia_jax.models.lora import LoraConfig
from spatia_jax.models.text_encoder import TextEncoderConfig
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.splat import SplatConfig
from spatia_jax.text import SUFFIX


def experiment() -> Experiment:
    return Experiment(
        name="spatia_5b",
        clip=ClipConfig(
            height=704,
            width=1248,
            fps=24,
            opening_frames=121,
            new_frames=72,
            history_frames=9,
            references=7,
            target_stride=12,
            reference_stride=4,
            text_length=512,
        ),
        # Sizes are the defaults of each network; bfloat16 is the release's.
        autoencoder=AutoencoderConfig(streaming=True, tile=(44, 26)),
        transformer=TransformerConfig(dtype="bfloat16"),
        text_encoder=TextEncoderConfig(),
        depth=DepthConfig(input_size=(294, 518)),  # that at which the release sees frames
        splat=SplatConfig(radius=0.01, points_per_pixel=5),
        memory=MemoryConfig(
            capacity=8_000_000,
            voxel_size=0.01,
            bank_frames=192,
            map_stride=6,
            pixel_stride=2,  # about the density of the release's maps: 518 points a row
            retrieval=RetrievalConfig(CovisibleAssignment()),
        ),
        mapper=MapperConfig(),
        flow=FlowConfig(parametrization=Velocity(), shift=5.0),
        sampler=SamplerConfig(solver="unipc", steps=40, shift=5.0),
        guidance=3.5,
        prompt_suffix=SUFFIX,
        lora=LoraConfig(rank=64),
        joint_decode=True,
    )

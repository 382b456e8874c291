"""An experiment so small that a whole rollout compiles and runs in seconds: for tests of everything but quality."""

from spatia_jax.config import ClipConfig, Experiment, MemoryConfig, TrainingConfig
from spatia_jax.data.procedural import ProceduralConfig
from spatia_jax.diffusion import Clean, FlowConfig, SamplerConfig
from spatia_jax.mapper import MapperConfig
from spatia_jax.models.autoencoder import AutoencoderConfig
from spatia_jax.models.depth import DepthConfig
from spatia_jax.models.inpainter import InpainterConfig
from spatia_jax.models.motion import MotionNetworkConfig
from spatia_jax.models.text_encoder import TextEncoderConfig
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.splat import SplatConfig
from spatia_jax.training import FitConfig


def experiment() -> Experiment:
    fit = FitConfig(steps=4, batch_size=2, log_every=1, save_every=2)
    return Experiment(
        name="micro",
        clip=ClipConfig(
            height=32, width=64, fps=12, opening_frames=5, new_frames=4, history_frames=5,
            references=2, target_stride=4, reference_stride=2, text_length=8,
        ),
        autoencoder=AutoencoderConfig(
            dim=8, dec_dim=8, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1, temporal_downsample=(True, True),
            patch_size=4,
        ),
        transformer=TransformerConfig(
            dim=24, ffn_dim=32, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_dim=8, freq_dim=8,
            control_layers=(0,), control_in_dim=8,
        ),
        text_encoder=TextEncoderConfig(vocab_size=300, dim=8, attention_dim=8, ffn_dim=16, num_heads=2, num_layers=1),
        depth=DepthConfig(
            dim=16, num_layers=4, num_heads=2, position_grid=(2, 4), feature_layers=(0, 1, 2, 3),
            neck_dims=(8, 8, 8, 8), fusion_dim=8, head_dim=8, input_size=(28, 56),
        ),
        splat=SplatConfig(radius=0.08, points_per_pixel=3),
        memory=MemoryConfig(capacity=4000, voxel_size=0.05, bank_frames=8, map_stride=2),
        mapper=MapperConfig(),
        flow=FlowConfig(parametrization=Clean(floor=0.3), shift=2.0),
        sampler=SamplerConfig(solver="unipc", steps=3, shift=3.0),
        control_fill="inpainter",
        inpainter=InpainterConfig(scale=2, widths=(8, 16), panorama=(8, 24), panorama_widths=(8, 16)),
        motion=MotionNetworkConfig(widths=(8, 16)),
        guidance=1.5,
        procedural=ProceduralConfig(scenes=4, frames=13, height=32, width=64),
        training=TrainingConfig(
            autoencoder=fit, depth=fit, inpainter=fit, motion=fit, stage1=fit, stage2=fit, crop=32,
        ),
    )  # fmt: skip

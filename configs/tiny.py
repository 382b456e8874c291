"""The embedded default: the released architecture at a size that two CPU cores can train and run.

Trained from scratch by train.py on the procedural world; the weights are part of the package (docs/tiny.md).
"""

from spatia_jax.config import ClipConfig, Experiment, MemoryConfig, TrainingConfig
from spatia_jax.data.procedural import ProceduralConfig
from spatia_jax.diffusion import Clean, FlowConfig, SamplerConfig
from spatia_jax.mapper import MapperConfig
from spatia_jax.memory import RetrievalConfig
from spatia_jax.models.autoencoder import AutoencoderConfig
from spatia_jax.models.depth import DepthConfig
from spatia_jax.models.inpainter import InpainterConfig
from spatia_jax.models.motion import MotionNetworkConfig
from spatia_jax.models.text_encoder import TextEncoderConfig
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.splat import SplatConfig
from spatia_jax.training import FitConfig, OptimizerConfig


def experiment() -> Experiment:
    height, width, latent = 128, 224, 96
    return Experiment(
        name="tiny",
        clip=ClipConfig(
            height=height,
            width=width,
            fps=12,
            opening_frames=17,
            new_frames=16,
            history_frames=9,
            references=3,
            target_stride=8,
            reference_stride=4,
            text_length=32,
        ),
        autoencoder=AutoencoderConfig(
            dim=96,
            dec_dim=96,
            z_dim=latent,
            dim_mult=(1, 1),
            num_res_blocks=0,
            temporal_downsample=(True,),
            spatial_downsample=(False,),
            patch_size=16,
            patch_kernel=1,
            latent_mean=(0.0,) * latent,
            latent_std=(1.0,) * latent,
        ),
        transformer=TransformerConfig(
            dim=256,
            ffn_dim=1024,
            num_heads=4,
            num_layers=6,
            in_dim=latent,
            out_dim=latent,
            text_dim=64,
            freq_dim=64,
            control_layers=(0, 3),
            control_in_dim=2 * latent,
            control_skip=True,
        ),
        text_encoder=TextEncoderConfig(
            vocab_size=512, dim=64, attention_dim=64, ffn_dim=128, num_heads=4, num_layers=2
        ),
        depth=DepthConfig(
            dim=128,
            num_layers=4,
            num_heads=4,
            position_grid=(9, 16),
            feature_layers=(0, 1, 2, 3),
            neck_dims=(32, 48, 64, 96),
            fusion_dim=48,
            head_dim=24,
            max_depth=20.0,
            input_size=(126, 224),
        ),
        splat=SplatConfig(radius=0.02, points_per_pixel=8),
        memory=MemoryConfig(
            capacity=120_000, voxel_size=0.01, bank_frames=64, map_stride=4, retrieval=RetrievalConfig()
        ),
        mapper=MapperConfig(covered_weight=0.0),
        flow=FlowConfig(parametrization=Clean(floor=0.5), shift=20.0, logit_std=1.5),
        sampler=SamplerConfig(solver="unipc", steps=2, shift=3.0),
        control_fill="inpainter",
        inpainter=InpainterConfig(),
        motion=MotionNetworkConfig(),
        guidance=1.0,
        procedural=ProceduralConfig(scenes=2000, frames=41, height=height, width=width),
        training=TrainingConfig(
            autoencoder=FitConfig(
                steps=500,
                batch_size=4,
                seed=1,
                optimizer=OptimizerConfig(
                    learning_rate=2e-5, weight_decay=0.0, ema_decay=0.98, warmup_steps=100, clip_norm=0.1
                ),
            ),
            autoencoder_start="principal",
            depth=FitConfig(steps=2400, batch_size=8, seed=2, optimizer=OptimizerConfig(learning_rate=1e-3)),
            inpainter=FitConfig(
                steps=14_000,
                batch_size=3,  # maps, with six views each
                seed=5,
                save_every=1000,
                optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.02, ema_decay=0.998, warmup_steps=100),
            ),
            motion=FitConfig(
                steps=3000,
                batch_size=8,
                seed=6,
                save_every=1000,
                optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.02, ema_decay=0.99, warmup_steps=100),
            ),
            motion_scenes=560,
            stage1=FitConfig(
                steps=250, batch_size=8, seed=3, optimizer=OptimizerConfig(learning_rate=1e-3, ema_decay=0.99)
            ),
            stage2=FitConfig(
                steps=1500, batch_size=8, seed=4, optimizer=OptimizerConfig(learning_rate=1e-3, ema_decay=0.995)
            ),
            crop=96,
        ),
    )

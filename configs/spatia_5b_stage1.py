"""Stage 1 of the paper: the control branch learns to paint opening clips on the projection; Wan2.2 stays frozen.

    python train.py configs/spatia_5b_stage1.py --part stage1 --start weights/wan --data DATA --output runs/5b

`--start` is a folder that `python -m spatia_jax.weights convert` wrote of Wan2.2-TI2V-5B, its text encoder and its
autoencoder; without Spatia's control file the control branch starts from the main blocks, as in the paper (spec 1.5).

Settings of the paper: AdamW, 8,000 steps of 64 clips, learning rate 1e-5 (spec 1.7). Not in it, and ours: betas, weight
decay, clipping, warm-up, a constant rate, the average. Sized for 64 chips of 95 GB, one clip each: docs/aot.md.
"""

import dataclasses
from pathlib import Path

from spatia_jax.config import Experiment, TrainingConfig, load_experiment
from spatia_jax.data.conditioning import ConditioningConfig
from spatia_jax.parallel import MeshConfig
from spatia_jax.training import FitConfig, OptimizerConfig

STAGE1 = FitConfig(
    steps=8000,
    batch_size=64,
    seed=1,
    train_only=("transformer.control",),
    frozen_dtype="bfloat16",
    readers=16,
    save_every=250,
    evaluate_every=500,
    sample_every=500,
    optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=100, final_fraction=1.0, beta2=0.999, ema_decay=0.999),
)


def experiment() -> Experiment:
    released = load_experiment(Path(__file__).with_name("spatia_5b.py"))
    return dataclasses.replace(
        released,
        transformer=dataclasses.replace(released.transformer, remat="block"),
        procedural=dataclasses.replace(released.procedural, height=704, width=1248, frames=217),
        training=TrainingConfig(
            mesh=MeshConfig(fsdp=64),
            latents="on_the_fly",
            conditioning=ConditioningConfig(map_stride=12),
            stage1=STAGE1,
        ),
    )

"""configs/tiny.py made larger, to be trained from scratch on one GPU in a day.

    python train.py configs/small.py --part autoencoder --output runs/small    (then depth, inpainter, stage1, stage2)

The arithmetic (`spatia_jax.training.cost`, forward and backward, nothing counted twice): the transformer has 0.20 G
parameters and reads 1,904 tokens of an opening clip, 2,912 of a continuing one: 2.6 and 4.4 TFLOP an example. Stage 1
is 20,000 steps of 32, 84 TFLOP each; stage 2 is 200,000 steps of 32, three of ten opening clips, 122 TFLOP each: 26
EFLOP in all. An H100 (989 TFLOP/s in bfloat16) at an assumed MFU of 35 % needs 21 hours for that. Latents are cached:
10.2 MB a scene in both kinds of clips, which are held in the host's memory (61 GB for 6,000).

No GPU was at hand: step time and MFU are assumptions, and the other parts (the depth network and the inpainter have
the settings of configs/tiny.py) come on top.
"""

import dataclasses
from pathlib import Path

from spatia_jax.config import Experiment, load_experiment
from spatia_jax.data.procedural import ProceduralConfig
from spatia_jax.training import FitConfig, OptimizerConfig


def experiment() -> Experiment:
    tiny = load_experiment(Path(__file__).with_name("tiny.py"))
    height, width, text = 256, 448, 256
    stage2 = FitConfig(
        steps=200_000,
        batch_size=32,
        seed=4,
        log_every=100,
        save_every=2000,
        evaluate_every=2000,
        sample_every=10_000,
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=1000, ema_decay=0.9995),
    )
    return dataclasses.replace(
        tiny,
        name="small",
        clip=dataclasses.replace(
            tiny.clip, height=height, width=width, opening_frames=33, new_frames=32, references=5, text_length=64
        ),
        transformer=dataclasses.replace(
            tiny.transformer,
            dim=768,
            ffn_dim=3072,
            num_heads=12,
            num_layers=16,
            text_dim=text,
            freq_dim=256,
            control_layers=(0, 4, 8, 12),
            dtype="bfloat16",
            remat="dots",
        ),
        text_encoder=dataclasses.replace(
            tiny.text_encoder, dim=text, attention_dim=text, ffn_dim=2 * text, num_heads=8, num_layers=4
        ),
        depth=dataclasses.replace(tiny.depth, position_grid=(18, 32), input_size=(252, 448)),
        memory=dataclasses.replace(tiny.memory, capacity=500_000),
        procedural=ProceduralConfig(scenes=6000, frames=65, height=height, width=width),
        training=dataclasses.replace(
            tiny.training, stage1=dataclasses.replace(stage2, steps=20_000, seed=3), stage2=stage2
        ),
    )

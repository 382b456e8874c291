"""Stage 2 of the paper: a LoRA of rank 64 on the main blocks learns history and references; all else stays frozen.

    python train.py configs/spatia_5b_stage2.py --part stage2 --start weights/wan --data DATA --output runs/5b

continues the transformer of stage 1 in `runs/5b/weights`, or that of `--start` if there is none (Spatia's released
control branch, converted together with Wan2.2). The LoRA ends in `runs/5b/weights/lora.safetensors`;
`python -m spatia_jax.weights export` writes it under the official names.

Settings of the paper: AdamW, 5,000 steps of 64 clips, learning rate 1e-4, rank 64 on q, k, v, o and both layers of the
feed-forward networks (spec 1.7). Full fine-tuning instead, of everything but the text encoder:

    --training.stage2.train-only transformer --training.stage2.optimizer.learning-rate 1e-5 lora:none
"""

import dataclasses
from pathlib import Path

from spatia_jax.config import Experiment, load_experiment


def experiment() -> Experiment:
    first = load_experiment(Path(__file__).with_name("spatia_5b_stage1.py"))
    optimizer = dataclasses.replace(first.training.stage1.optimizer, learning_rate=1e-4)
    stage2 = dataclasses.replace(first.training.stage1, steps=5000, seed=2, train_only=("lora",), optimizer=optimizer)
    # Opening clips do not meet the LoRA (the release has none in round 0), so there is nothing to learn from them.
    return dataclasses.replace(first, training=dataclasses.replace(first.training, stage2=stage2, opening_share=0.0))

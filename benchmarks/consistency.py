"""What the spatial-consistency terms do: a very small generator trained with and without each.

    python -m benchmarks.consistency --steps 300

The architecture of configs/tiny.py at 64 x 96 pixels, 9 frames, width 64, two blocks, its autoencoder as the principal
start leaves it. Each run starts from the same weights, sees the same clips and noise, and is measured on the same
held-out clips at the same noise: error of the clean latents, and both terms, whether they were trained on or not.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np

from spatia_jax.config import Experiment, load_experiment
from spatia_jax.data.procedural import ProceduralConfig, ProceduralSource
from spatia_jax.model import Model
from spatia_jax.text import Tokenizer, train_tokenizer
from spatia_jax.training import FitConfig, OptimizerConfig, fit
from spatia_jax.training.consistency import ConsistencyConfig
from spatia_jax.training.examples import clip_batches
from spatia_jax.training.generator import GeneratorObjective
from spatia_jax.training.latents import normalize_latents
from spatia_jax.training.principal import principal_start

VARIANTS = {"neither": (0.0, 0.0), "reprojection": (3.0, 0.0), "pose": (0.0, 0.01)}
HEIGHT, WIDTH, FRAMES, BATCH = 64, 96, 9, 4


def small_experiment() -> Experiment:
    tiny = load_experiment("configs/tiny.py")
    clip = dataclasses.replace(
        tiny.clip, height=HEIGHT, width=WIDTH, opening_frames=FRAMES, new_frames=8, history_frames=9
    )
    transformer = dataclasses.replace(
        tiny.transformer, dim=64, ffn_dim=128, num_heads=2, num_layers=2, control_layers=(0,)
    )
    memory = dataclasses.replace(tiny.memory, capacity=16_000)
    return dataclasses.replace(
        tiny, clip=clip, transformer=transformer, memory=memory, control_fill="surroundings", inpainter=None
    )


def variant(experiment: Experiment, reprojection: float, pose: float) -> GeneratorObjective:
    consistency = ConsistencyConfig(reprojection=reprojection, pose=pose)
    training = dataclasses.replace(experiment.training, latents="on_the_fly", consistency=consistency)
    return GeneratorObjective(Model(dataclasses.replace(experiment, training=training)))


def records(first: int, count: int) -> list[dict]:
    config = ProceduralConfig(scenes=count, frames=FRAMES, height=HEIGHT, width=WIDTH, first_seed=first)
    source = ProceduralSource(config)
    return [source[i] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    experiment, folder = small_experiment(), Path(tempfile.mkdtemp())
    model, source = Model(experiment), records(50_000, args.scenes)
    train_tokenizer([record["caption"] for record in source], 512, folder / "tokenizer.json")
    tokenizer = Tokenizer.load(folder)
    videos = np.stack([record["frames"] for record in source])
    autoencoder = jax.jit(lambda key: model.init("autoencoder", key))(jax.random.key(0))
    autoencoder = normalize_latents(model, principal_start(model, autoencoder, videos), videos[:16])
    train, held_out = (
        clip_batches(model, records, tokenizer, batch_size=BATCH, seed=0, opening_share=1.0)
        for records in (source, records(1_000_000, args.held_out))
    )
    measure, batches = jax.jit(variant(experiment, 1.0, 1.0).loss), args.held_out // BATCH
    keys = jax.random.split(jax.random.key(9), (batches, BATCH))

    def score(params) -> dict[str, float]:
        found = [measure(params, held_out[i], keys[i])[1] for i in range(batches)]
        return {name: float(np.mean([float(row[name]) for row in found])) for name in found[0]}

    config = FitConfig(
        steps=args.steps, batch_size=BATCH, log_every=50, save_every=args.steps,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, ema_decay=0.98),
    )  # fmt: skip
    start = jax.jit(variant(experiment, 0, 0).init)(jax.random.key(1, impl="rbg"))
    print("before", score(start | {"autoencoder": autoencoder}), flush=True)
    for name in args.variants:
        objective = variant(experiment, *VARIANTS[name])
        state = fit(objective, config, train, folder / name, start=start, frozen={"autoencoder": autoencoder})
        print(name, score(state.evaluated), flush=True)


if __name__ == "__main__":
    main()

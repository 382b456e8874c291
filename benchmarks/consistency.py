"""What the spatial-consistency terms do: the embedded tiny model trained on for some steps with and without each.

    python -m benchmarks.consistency --steps 60

Each run starts from the embedded weights, sees the same clips and noise, and is measured on the same held-out clips at
the same noise: error of the clean latents, and both terms, whether they were trained on or not.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np

from spatia_jax.config import load_experiment
from spatia_jax.data.procedural import ProceduralConfig, ProceduralSource
from spatia_jax.model import Model
from spatia_jax.training import FitConfig, OptimizerConfig, fit
from spatia_jax.training.consistency import ConsistencyConfig
from spatia_jax.training.examples import clip_batches
from spatia_jax.training.generator import GeneratorObjective
from spatia_jax.weights.bundle import load_weights, weights_folder

VARIANTS = {"neither": (0.0, 0.0), "reprojection": (3.0, 0.0), "pose": (0.0, 0.01)}


def variant(experiment, reprojection: float, pose: float) -> GeneratorObjective:
    consistency = ConsistencyConfig(reprojection=reprojection, pose=pose)
    training = dataclasses.replace(experiment.training, latents="on_the_fly", consistency=consistency)
    return GeneratorObjective(Model(dataclasses.replace(experiment, training=training)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=16)
    args = parser.parse_args()
    experiment = load_experiment("configs/tiny.py")
    experiment = dataclasses.replace(experiment, control_fill="surroundings", inpainter=None)
    model = Model(experiment)
    params, tokenizer = load_weights(model, weights_folder("tiny", None))
    clips = {
        first: [ProceduralSource(ProceduralConfig(scenes=count, frames=17, first_seed=first))[i] for i in range(count)]
        for first, count in ((50_000, args.scenes), (1_000_000, args.held_out))
    }
    train, held_out = (
        clip_batches(model, source, tokenizer, batch_size=2, seed=0, opening_share=1.0) for source in clips.values()
    )
    measure = jax.jit(variant(experiment, 1.0, 1.0).loss)
    keys = jax.random.split(jax.random.key(9), (args.held_out // 2, 2))

    def score(trained) -> dict[str, float]:
        found = [measure(params | trained, held_out[i], keys[i])[1] for i in range(args.held_out // 2)]
        return {name: float(np.mean([float(row[name]) for row in found])) for name in found[0]}

    start = {name: params[name] for name in ("transformer", "text_encoder")}
    print("before", score(start), flush=True)
    config = FitConfig(
        steps=args.steps, batch_size=2, log_every=10, save_every=args.steps,
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, ema_decay=0.9),
    )  # fmt: skip
    for name, weights in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            objective = variant(experiment, *weights)
            state = fit(
                objective, config, train, Path(folder), start=start, frozen={"autoencoder": params["autoencoder"]}
            )
        print(name, score(state.networks), flush=True)


if __name__ == "__main__":
    main()

"""A program: loss and gradients of the generator on one device, and on four along the meshes that are named.

Prints one line of JSON for each mesh: how far loss and gradients are from those of one device. Run by
test_equality.py, in processes of its own, since the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys

import jax
import numpy as np

if "SPATIA_TEST_PROCESS" in os.environ:  # one of two processes with two devices each
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(os.environ["SPATIA_TEST_ADDRESS"], 2, int(os.environ["SPATIA_TEST_PROCESS"]))
else:
    jax.config.update("jax_num_cpu_devices", 4)

from configs.micro import experiment
from jax.experimental.multihost_utils import process_allgather

from spatia_jax.model import Model
from spatia_jax.parallel import MeshConfig, batch_shardings, make_mesh, state_shardings
from spatia_jax.training.generator import GeneratorObjective

MESHES = {
    "data": MeshConfig(data=4),
    "fsdp": MeshConfig(fsdp=4),
    "tensor": MeshConfig(tensor=4),
    "context": MeshConfig(context=4),
    "fsdp-context": MeshConfig(fsdp=2, context=2),
    "fsdp-tensor": MeshConfig(fsdp=2, tensor=2),
    "context-tensor": MeshConfig(context=2, tensor=2),
    "slices-tensor": MeshConfig(slices=2, tensor=2),
    "slices-fsdp": MeshConfig(slices=2, fsdp=2),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FRAMES, ROWS, COLUMNS = 4, 4, 6  # six tokens a frame: four devices need padding


def objective(method: str, remat: str) -> GeneratorObjective:
    config = experiment()
    transformer = dataclasses.replace(
        config.transformer, dim=48, num_heads=4, sequence_parallel=method, remat=remat
    )  # fmt: skip
    return GeneratorObjective(Model(dataclasses.replace(config, transformer=transformer)))


def value(objective: GeneratorObjective, *args):
    return objective.loss(*args)[0]


def batch(opening: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(opening))

    def latents(frames: int, channels: int) -> np.ndarray:
        return rng.standard_normal((4, frames, ROWS, COLUMNS, channels)).astype(np.float16)

    frames = FRAMES if opening else FRAMES + 1
    ids, mask = rng.integers(1, 300, (4, 8), dtype=np.int32), np.arange(8) < rng.integers(2, 8, (4, 1))
    texts = {"ids": ids, "mask": mask, "empty_ids": np.zeros_like(ids), "empty_mask": np.arange(8) < np.ones((4, 1))}
    references = {} if opening else {"references": latents(2, 4)}
    return texts | references | {"video": latents(frames, 4), "control": latents(frames, 8)}


def parameters(objective: GeneratorObjective):
    """Without any zero in them, so that every one has a gradient."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.2, shapes)


def distance(values, expected) -> dict[str, float]:
    """Of loss, of all gradients together, and of the array that is furthest off, relative to the expected."""
    (loss, gradients), (loss0, gradients0) = values, expected
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients0), strict=True))
    off = np.array([np.linalg.norm(a - b) for a, b in pairs])
    size = np.array([np.linalg.norm(b) for _, b in pairs])
    assert (size > 0).all(), "an array without a gradient proves nothing"
    return {
        "loss": float(abs(loss - loss0) / abs(loss0)),
        "gradient": float(np.linalg.norm(off) / np.linalg.norm(size)),
        "worst": float((off / size).max()),
    }


def main(names: list[str]) -> None:
    for opening in (True, False) if os.environ.get("SPATIA_TEST_KINDS") != "continuing" else (False,):
        given, params, alone = batch(opening), parameters(objective("ulysses", "none")), jax.local_devices()[0]
        key = jax.random.key(7)
        args = jax.device_put((params, given, key), alone)
        compute = jax.jit(jax.value_and_grad(functools.partial(value, objective("ulysses", "none"))))
        expected = jax.tree.map(np.asarray, compute(*args))
        for name in names:
            where, method, remat = [*(parts := name.split(":")), *("ulysses", "none")[len(parts) - 1 :]]
            mesh = make_mesh(MESHES[where])
            with jax.set_mesh(mesh):
                lie = state_shardings(params, mesh), batch_shardings(given, mesh)
                places = jax.tree.map(
                    lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda index, x=x: np.asarray(x)[index]),
                    (params, given), lie,
                )  # fmt: skip
                loss = functools.partial(value, objective(method, remat))
                run = jax.jit(jax.value_and_grad(loss), out_shardings=(None, lie[0]))
                compiled = run.lower(*places, key).compile()
                values = compiled(*places, key)
            cut = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(values[1]))
            values = process_allgather(values, tiled=True) if jax.process_count() > 1 else values
            counts = {kind: compiled.as_text().count(f" {kind}(") for kind in COLLECTIVES}
            line = {"mesh": name, "opening": opening, "cut": cut, **counts}
            print(json.dumps(line | distance(jax.tree.map(np.asarray, values), expected)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

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
from spatia_jax.models.lora import LoraConfig
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


def objective(method: str, remat: str, opening: bool) -> GeneratorObjective:
    """The micro generator with four heads; in continuing clips with a LoRA."""
    config = experiment()
    transformer = dataclasses.replace(config.transformer, dim=48, num_heads=4, sequence_parallel=method, remat=remat)
    model = Model(dataclasses.replace(config, transformer=transformer, lora=LoraConfig(rank=4)))
    return GeneratorObjective(model, ("transformer", "text_encoder", *(() if opening else ("lora",))))


def loss(objective: GeneratorObjective, params, batch):
    return objective.loss(params, batch, jax.random.split(jax.random.key(7), 4))[0]


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
    """Of loss, of all gradients together, and of the array that is furthest off, relative to the expected.

    Gradients of cross-attention's keys nearly cancel, since a softmax does not see what all logits share: that of their
    bias in the control branch is 1/180,000 of the whole, and so are the sums' roundings larger beside it (6e-5). An
    array counts as at least 1/10,000 of the whole, therefore; one that was computed wrongly would still be off by 5 %.
    """
    (loss, gradients), (loss0, gradients0) = values, expected
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients0), strict=True))
    off = np.array([np.linalg.norm(a - b) for a, b in pairs])
    size = np.array([np.linalg.norm(b) for _, b in pairs])
    assert (size > 0).all(), "an array without a gradient proves nothing"
    return {
        "loss": float(abs(loss - loss0) / abs(loss0)),
        "gradient": float(np.linalg.norm(off) / np.linalg.norm(size)),
        "worst": float((off / np.maximum(size, 1e-4 * np.linalg.norm(size))).max()),
    }


def main(names: list[str]) -> None:
    for opening in (True, False) if os.environ.get("SPATIA_TEST_KINDS") != "continuing" else (False,):
        given, alone = batch(opening), jax.local_devices()[0]
        plain = objective("ulysses", "none", opening)
        params = parameters(plain)
        compute = jax.jit(jax.value_and_grad(functools.partial(loss, plain)))
        expected = jax.tree.map(np.asarray, compute(*jax.device_put((params, given), alone)))
        for name in names:
            where, method, remat = [*(parts := name.split(":")), *("ulysses", "none")[len(parts) - 1 :]]
            compiled, values = on_mesh(MESHES[where], objective(method, remat, opening), params, given)
            cut = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(values[1]))
            counts = {kind: compiled.count(f" {kind}(") for kind in COLLECTIVES}
            values = process_allgather(values, tiled=True) if jax.process_count() > 1 else values
            line = {"mesh": name, "opening": opening, "cut": cut, **counts}
            print(json.dumps(line | distance(jax.tree.map(np.asarray, values), expected)), flush=True)


def on_mesh(config: MeshConfig, objective: GeneratorObjective, params, given):
    """The text of the program for a mesh, and the loss and gradients that it computes."""
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
        lie = state_shardings(params, mesh), batch_shardings(given, mesh)
        places = jax.tree.map(
            lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda index: np.asarray(x)[index]),
            (params, given), lie,
        )  # fmt: skip
        run = jax.jit(jax.value_and_grad(functools.partial(loss, objective)), out_shardings=(None, lie[0]))
        compiled = run.lower(*places).compile()
        return compiled.as_text(), compiled(*places)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Where parameters lie: properties of the rules at the released sizes, and real placement on 8 devices."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import jax
import pytest
from configs.micro import experiment
from flax import nnx
from jax.sharding import PartitionSpec as P

from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.models.lora import LowRank
from spatia_jax.parallel import MeshConfig, make_mesh, param_specs
from spatia_jax.training import OptimizerConfig
from spatia_jax.training.state import TrainState
from spatia_jax.weights import text_encoder, transformer
from spatia_jax.weights.layouts import ReleasedSizes

MESHES = [
    MeshConfig(),
    MeshConfig(fsdp=8),
    MeshConfig(tensor=4),
    MeshConfig(2, 4, 2, 8),
    MeshConfig(fsdp=3, tensor=5),
    MeshConfig(fsdp=64),
]


@pytest.fixture(scope="module")
def released():
    """Shapes of the networks that need more than one device, as the checkpoints have them."""
    sizes = ReleasedSizes()
    return {
        "transformer": nnx.to_pure_dict(transformer.abstract_params(sizes.transformer)),
        "text_encoder": nnx.to_pure_dict(text_encoder.abstract_params(sizes.text_encoder)),
    }


def by_path(specs):
    leaves = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, P))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): spec for path, spec in leaves}


def assert_sound(tree, config):
    """Every spec has the rank of its array, divides it, and names no axis twice."""
    specs = jax.tree.leaves(param_specs(tree, config), is_leaf=lambda x: isinstance(x, P))
    for leaf, spec in zip(jax.tree.leaves(tree), specs, strict=True):
        assert len(spec) == leaf.ndim
        axes = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
        used = list(itertools.chain(*axes))
        assert len(used) == len(set(used))
        assert not set(used) & {"data", "context"}
        for length, names in zip(leaf.shape, axes, strict=True):
            assert length % math.prod(getattr(config, name) for name in names) == 0


@pytest.mark.parametrize("config", MESHES, ids=str)
def test_every_spec_is_sound(released, config):
    assert_sound(released, config)
    model = Model(experiment())
    optimizer = OptimizerConfig().build(10)
    assert_sound(jax.eval_shape(lambda p: TrainState.create(p, optimizer), model.abstract_params()), config)


def test_the_table(released):
    specs = by_path(param_specs(released, MeshConfig(fsdp=4, tensor=2)))
    for name, spec in {
        "transformer.blocks.self_attn.q.kernel": P(None, "fsdp", "tensor"),
        "transformer.blocks.cross_attn.o.kernel": P(None, "tensor", "fsdp"),
        "transformer.blocks.ffn.up.kernel": P(None, "fsdp", "tensor"),
        "transformer.control.blocks.block.ffn.down.kernel": P(None, "tensor", "fsdp"),
        "transformer.control.blocks.after_proj.kernel": P(None, None, "fsdp"),
        "transformer.text_embedding.up.kernel": P("fsdp", "tensor"),
        "transformer.blocks.self_attn.q.bias": P(None, None),
        "transformer.blocks.self_attn.norm_q.scale": P(None, None),
        "transformer.blocks.modulation": P(None, None, None),
        "text_encoder.embedding.embedding": P(("tensor", "fsdp"), None),
        "text_encoder.blocks.ffn.gate.kernel": P(None, "fsdp", "tensor"),
        "text_encoder.blocks.attention.position_bias": P(None, None, "tensor"),
        "text_encoder.norm.scale": P(None),
    }.items():
        assert specs[name] == spec, name


def test_what_is_left_whole_is_little(released):
    """On 8 devices, a device has hardly more than an eighth of the bytes."""
    for config in (MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2)):
        for tree in released.values():
            specs = jax.tree.leaves(param_specs(tree, config), is_leaf=lambda x: isinstance(x, P))
            total = here = 0
            for leaf, spec in zip(jax.tree.leaves(tree), specs, strict=True):
                axes = itertools.chain(*[(e,) if isinstance(e, str) else e or () for e in spec])
                total += leaf.size
                here += leaf.size // math.prod(getattr(config, axis) for axis in axes)
            assert here < total / 8 * (1.01 if config.tensor == 1 else 1.1)


def test_lora_and_optimizer_follow_the_kernels(released):
    config = MeshConfig(fsdp=4, tensor=2)
    kernels = released["transformer"]["blocks"]
    wanted = by_path(param_specs(kernels, config))
    lora = {}
    for layer in ("self_attn.q", "self_attn.o", "ffn.up", "ffn.down"):
        room, name = layer.split(".")
        layers, inputs, outputs = kernels[room][name]["kernel"].shape
        lora[layer] = LowRank(*(jax.ShapeDtypeStruct((layers, *s), "float32") for s in ((inputs, 32), (32, outputs))))
    for layer, factors in param_specs(lora, config).items():
        kernel = wanted[f"{layer}.kernel"]
        assert factors.down == P(None, kernel[1], None)
        assert factors.up == P(None, None, kernel[2])
    state = jax.eval_shape(lambda p: TrainState.create(p, OptimizerConfig().build(10)), kernels)
    followed = [(path, spec) for path, spec in by_path(param_specs(state, config)).items() if path.endswith(".kernel")]
    assert len(followed) >= 4 * sum(path.endswith(".kernel") for path in wanted)  # parameters, EMA, two moments
    for path, spec in followed:
        assert spec == next(s for name, s in wanted.items() if path.endswith(name))


def test_nnx_states_are_pytrees_too(released):
    config, state = MeshConfig(fsdp=4, tensor=2), transformer.abstract_params(ReleasedSizes().transformer)
    found = {path.removesuffix(".value"): spec for path, spec in by_path(param_specs(state, config)).items()}
    assert found == by_path(param_specs(released["transformer"], config))


def test_impossible_meshes_are_refused():
    with pytest.raises(InputError, match=r"mesh\.tensor is 0"):
        MeshConfig(tensor=0)
    with pytest.raises(InputError, match="fsdp 3 x context 1 x tensor 1 is 3 devices; there are 1"):
        make_mesh(MeshConfig(fsdp=3), jax.devices()[:1])


def test_placement_on_eight_devices():
    """In a process of its own, since the number of CPU devices is fixed when JAX starts."""
    program = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from spatia_jax.parallel import AXES, MeshConfig, make_mesh, param_shardings
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
assert mesh.axis_names == AXES
params = {"blocks": {"ffn": {"up": {"kernel": np.arange(96.0).reshape(3, 4, 8), "bias": np.ones((3, 8))}}}}
placed = jax.device_put(params, param_shardings(params, mesh))
up = placed["blocks"]["ffn"]["up"]
assert {shard.data.shape for shard in up["kernel"].addressable_shards} == {(3, 2, 4)}
assert len({str(shard.index) for shard in up["kernel"].addressable_shards}) == 4
assert up["bias"].sharding.is_fully_replicated
np.testing.assert_array_equal(up["kernel"], params["blocks"]["ffn"]["up"]["kernel"])
"""
    subprocess.run([sys.executable, "-c", program], check=True)

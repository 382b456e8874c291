"""Bad meshes: one line that names the allowed values, before anything is compiled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from configs.micro import experiment
from jax.sharding import AbstractMesh

from spatia_jax.errors import InputError
from spatia_jax.models.attention import attention
from spatia_jax.parallel import MeshConfig, batch_shardings, check_mesh, make_mesh
from spatia_jax.parallel.sequence import self_attention

RELEASED = {"heads": 24, "sequence_parallel": "ulysses", "batch_size": 64}


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        ({"fsdp": 8}, {"devices": 4}, "data 1 x fsdp 8 x context 1 x tensor 1 is 8 devices; there are 4"),
        ({"slices": 2, "fsdp": 2}, {"devices": 2}, "slices 2 x data 1 x fsdp 2"),
        ({"tensor": 5}, {}, "tensor is 5, which does not divide 24 heads; it must be one of 1, 2, 3, 4, 6, 8, 12, 24"),
        ({"context": 16}, {}, "context is 16, .* one of 1, 2, 3, 4, 6, 8, 12, 24, with ring any number will do"),
        ({"context": 8, "tensor": 2}, {}, "context is 8, .* the 12 heads of a device; .* one of 1, 2, 3, 4, 6, 12,"),
        ({"data": 3, "fsdp": 2}, {}, "batch of 64 .* slices 1 x data 3 x fsdp 2; it must be a multiple of 6"),
        ({"slices": 2, "fsdp": 64}, {}, "batch of 64 .* multiple of 128"),
    ],
)
def test_what_cannot_run_is_refused(sizes, changes, message):
    config = MeshConfig(**sizes)
    with pytest.raises(InputError, match=message) as caught:
        check_mesh(config.sizes, **(RELEASED | {"devices": config.num_devices} | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [({"fsdp": 64}, {}), ({"context": 16}, {"sequence_parallel": "ring"}), ({"data": 3}, {"batch_size": None})],
)
def test_what_can_run_is_not(sizes, changes):
    config = MeshConfig(**sizes)
    check_mesh(config.sizes, **(RELEASED | {"devices": config.num_devices} | changes))


def test_an_experiment_whose_training_mesh_cannot_run_is_no_config():
    config = experiment()
    for mesh, message in (
        (MeshConfig(context=4), "context is 4, .* one of 1, 2,"),
        (MeshConfig(tensor=4), "one of 1, 2"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(config, training=dataclasses.replace(config.training, mesh=mesh))


def test_the_door_is_not_the_only_check():
    """Who does not ask first is refused while the program is traced."""
    with pytest.raises(InputError, match="there are 1"):
        make_mesh(MeshConfig(context=3), jax.devices()[:1])
    mesh = AbstractMesh((1, 1, 4, 3, 1), ("slices", "data", "fsdp", "context", "tensor"))
    with pytest.raises(InputError, match="multiple of 4"):
        batch_shardings({"video": jax.ShapeDtypeStruct((6, 1), jnp.float32)}, mesh)
    heads = jax.ShapeDtypeStruct((4, 2, 6, 4, 8), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(InputError, match=r"must be one of 1, 2, 4"):
        jax.eval_shape(lambda x: self_attention(attention, x, x, x, 6, "ulysses"), heads)

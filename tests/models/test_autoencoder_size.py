"""The autoencoder at size: streaming, tiles and several devices change memory, not numbers."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatia_jax.config import Experiment, load_experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from spatia_jax.parallel import MeshConfig, make_mesh, param_shardings

CONFIG = AutoencoderConfig(
    dim=8, dec_dim=8, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(False, True), patch_size=2
)
TIME_ONLY = dataclasses.replace(
    CONFIG, dim_mult=(1, 1, 1), num_res_blocks=0, temporal_downsample=(True, True), spatial_downsample=(False, True)
)
REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = AutoencoderConfig(dim=32, dec_dim=32, z_dim=4, dim_mult=(1, 1), num_res_blocks=0, temporal_downsample=(True,))
TOLERANCE = 5e-6  # of values of order 1: the order of float32 sums, and nothing else


def experiment(**changes) -> Experiment:
    micro = load_experiment(REPOSITORY / "tests" / "configs" / "micro.py")
    return dataclasses.replace(micro, autoencoder=dataclasses.replace(SMALL, **changes))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def params_of(config: AutoencoderConfig) -> nnx.State:
    """Random everywhere, so that no layer hides what the others do."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(0, (np.prod(leaf.shape[:-1]) or 1) ** -0.5, leaf.shape), jnp.float32)

    return jax.tree.map(draw, nnx.state(nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))))


@functools.cache
def autoencoder(config: AutoencoderConfig, **changes) -> Autoencoder:
    changed = dataclasses.replace(config, **changes)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Autoencoder(changed, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, params_of(config))


@pytest.mark.parametrize("latent_frames", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_streaming_equals_whole_at_any_length(latent_frames):
    whole, streaming = autoencoder(SMALL), autoencoder(SMALL, streaming=True)
    latents, video = normal(0, 2, latent_frames, 2, 3, 4), normal(1, 2, 2 * latent_frames - 1, 8, 12, 3)
    encoded, decoded = jax.jit(streaming.encode_streaming)(video), jax.jit(streaming.decode_streaming)(latents)
    np.testing.assert_allclose(encoded, jax.jit(whole.encode)(video), atol=TOLERANCE)
    np.testing.assert_allclose(decoded, jax.jit(whole.decode)(latents), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("config", "tile", "size"),
    [(CONFIG, (9, 10), (20, 22)), (TIME_ONLY, (8, 1000), (29, 2))],
    ids=["both-ways", "time-only-stage-whole-rows"],
)
def test_tiles_equal_whole(config, tile, size):
    """Tiles do not divide the frame, and their windows are smaller than it (with whole rows: at every resolution)."""
    height, width = config.space_factor * size[0], config.space_factor * size[1]
    latents, video = normal(0, 1, 2, *size, 4), normal(1, 1, 1 + config.time_factor, height, width, 3)
    whole, tiled = autoencoder(config), autoencoder(config, streaming=True, tile=tile)
    encoded, decoded = jax.jit(tiled.encode_streaming)(video), jax.jit(tiled.decode_streaming)(latents)
    np.testing.assert_allclose(encoded, jax.jit(whole.encode)(video), atol=TOLERANCE)
    np.testing.assert_allclose(decoded, jax.jit(whole.decode)(latents), atol=TOLERANCE)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video():
    def temporary(frames: int, method: str, **changes) -> int:
        """Bytes beside inputs and outputs."""
        latents = jax.ShapeDtypeStruct((2, frames, 4, 96, 4), jnp.float32)
        compiled = jax.jit(getattr(autoencoder(SMALL, **changes), method)).lower(latents).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    streaming = temporary(5, "decode_streaming", streaming=True)
    growth = temporary(10, "decode_streaming", streaming=True) - streaming
    assert growth < 0.1 * (temporary(10, "decode") - temporary(5, "decode"))
    assert temporary(5, "decode_streaming", streaming=True, tile=(4, 8)) < 0.7 * streaming


def test_a_model_streams_where_its_config_says_so():
    whole, streaming = Model(experiment()), Model(experiment(streaming=True))
    params = {"autoencoder": nnx.to_pure_dict(params_of(SMALL))}
    for method, given in (("encode", normal(0, 1, 5, 8, 12, 3)), ("decode", normal(1, 1, 3, 2, 3, 4))):
        programs = [str(jax.make_jaxpr(getattr(model, method))(params, given)) for model in (whole, streaming)]
        assert [" scan[" in program for program in programs] == [False, True]


@pytest.mark.parametrize("change", [{"tile": (4, 4)}, {"tile": (0, 4), "streaming": True}])
def test_a_tile_without_sense_is_named(change):
    with pytest.raises(InputError, match="tile is"):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.slow
def test_devices_share_every_frame():
    """In a process with 4 devices, which runs this file."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=os.environ | flags | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_shared(model: Model, columns: int, mesh: MeshConfig) -> None:
    """Encode and decode of frames of so many latent columns by 4 devices and by one."""
    params = {"autoencoder": nnx.to_pure_dict(params_of(SMALL))}
    factor = SMALL.space_factor
    inputs = {"encode": normal(0, 1, 5, 4 * factor, columns * factor, 3), "decode": normal(1, 1, 3, 4, columns, 4)}
    for method, given in inputs.items():
        alone = jax.jit(getattr(model, method)).lower(params, given).compile()
        with jax.set_mesh(make_mesh(mesh)):
            lying = jax.device_put(params, param_shardings(params, make_mesh(mesh)))
            shared = jax.jit(getattr(model, method)).lower(lying, given).compile()
        value = shared(*jax.device_put((params, given), shared.input_shardings[0]))
        assert len(value.sharding.device_set) == 4
        np.testing.assert_allclose(value, alone(params, given), atol=TOLERANCE)
        assert "collective-permute" in shared.as_text()  # neighbours exchange borders
        if method == "decode":
            axis = 3 if columns % mesh.context == 0 else 2
            assert value.sharding.spec[axis] == "context"


if __name__ == "__main__":
    check_shared(Model(experiment()), 6, MeshConfig(context=4))  # 4 devices do not divide 6 columns, but 4 rows
    check_shared(Model(experiment(streaming=True, tile=(1, 32))), 32, MeshConfig(context=4))
    check_shared(Model(experiment()), 8, MeshConfig(fsdp=2, context=2))  # kernels are cut too
    check_shared(Model(experiment(streaming=True)), 8, MeshConfig(fsdp=2, context=2))

"""Loading network by network: what does not fit is said at once; either form, any dtype, straight to its devices."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.weights.bundle import check_weights, load_network
from spatia_jax.weights.orbax import write_orbax
from spatia_jax.weights.store import read_arrays, save_params

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"
NETWORK = "text_encoder"


@pytest.fixture(scope="module")
def model():
    return Model(load_experiment(CONFIG))


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The same random text encoder in both forms."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), model.abstract_params()[NETWORK])
    files, directories = (tmp_path_factory.mktemp(name) for name in ("safetensors", "orbax"))
    save_params(files / f"{NETWORK}.safetensors", params)
    write_orbax(directories / NETWORK, read_arrays(files / f"{NETWORK}.safetensors"))
    return {"safetensors": files, "orbax": directories, "params": params}


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_kernels_take_the_dtype_and_what_is_summed_in_float32_does_not(form, folders, model):
    wide = load_network(model, folders[form], NETWORK)
    jax.tree.map(np.testing.assert_array_equal, wide, folders["params"])
    narrow = load_network(model, folders[form], NETWORK, dtype=jnp.bfloat16)
    for name in ("q", "o"):
        kernel = narrow["blocks"]["attention"][name]["kernel"]
        wanted = folders["params"]["blocks"]["attention"][name]["kernel"].astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(kernel, wanted)
        assert kernel.dtype == jnp.bfloat16
    assert narrow["embedding"]["embedding"].dtype == jnp.bfloat16
    for kept in (narrow["norm"]["scale"], narrow["blocks"]["attention"]["position_bias"]):
        assert kept.dtype == jnp.float32


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_each_device_has_its_own_piece(form, folders, tmp_path):
    """In a process of its own, since the number of CPU devices is fixed when JAX starts."""
    program = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from pathlib import Path
from spatia_jax.config import load_experiment
from spatia_jax.model import Model
from spatia_jax.parallel import MeshConfig, make_mesh, param_shardings
from spatia_jax.weights.bundle import load_network
from spatia_jax.weights.store import find_params, read_arrays
model, folder = Model(load_experiment(sys.argv[1])), Path(sys.argv[2])
shardings = param_shardings(model.abstract_params()["text_encoder"], make_mesh(MeshConfig(fsdp=2, tensor=2)))
params = load_network(model, folder, "text_encoder", shardings=shardings, dtype="bfloat16")
assert all(jax.tree.leaves(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, params, shardings)))
up = params["blocks"]["ffn"]["up"]["kernel"]
assert [shard.data.shape for shard in up.addressable_shards] == [(1, 4, 8)] * 4
whole = read_arrays(find_params(folder, "text_encoder"))
np.testing.assert_array_equal(np.asarray(up), whole["blocks.ffn.up.kernel"].astype(up.dtype))
np.testing.assert_array_equal(params["norm"]["scale"], whole["norm.scale"])
"""
    subprocess.run([sys.executable, "-c", program, str(CONFIG), str(folders[form])], check=True)


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_all_that_does_not_fit_is_in_one_line(form, folders, model, tmp_path):
    arrays = dict(read_arrays(folders["safetensors"] / f"{NETWORK}.safetensors"))
    del arrays["norm.scale"]
    arrays["blocks.ffn.up.kernel"] = np.zeros((1, 2, 3), np.float32)
    arrays["extra.kernel"] = np.zeros(2, np.float32)
    if form == "orbax":
        write_orbax(tmp_path / NETWORK, arrays)
    else:
        save_params(tmp_path / f"{NETWORK}.safetensors", arrays)
    for read in (lambda: load_network(model, tmp_path, NETWORK), lambda: check_weights(model, tmp_path, [NETWORK])):
        with pytest.raises(InputError) as error:
            read()
        for part in ("missing norm.scale", "unknown extra.kernel", "ffn.up.kernel has shape (1, 2, 3), not (1, 8, 16)"):
            assert part in str(error.value)
        assert "\n" not in str(error.value)


def test_folders_that_are_no_checkpoints_are_refused(folders, model, tmp_path):
    with pytest.raises(InputError, match="neither text_encoder.safetensors nor text_encoder/"):
        load_network(model, tmp_path, NETWORK)
    (tmp_path / NETWORK).mkdir()
    with pytest.raises(InputError, match="not a whole Orbax checkpoint"):
        load_network(model, tmp_path, NETWORK)
    shutil.copytree(folders["orbax"] / NETWORK, tmp_path / NETWORK, dirs_exist_ok=True)
    largest = max((tmp_path / NETWORK).rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(InputError, match="not a whole Orbax checkpoint") as error:
        load_network(model, tmp_path, NETWORK)
    assert "\n" not in str(error.value)

"""Programs compiled for TPU slices that are not there: figures are complete, and no collective comes unannounced."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from configs.micro import experiment as micro

from spatia_jax import diffusion
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.parallel import MeshConfig, make_mesh
from spatia_jax.parallel.aot import __main__ as command
from spatia_jax.parallel.aot.chips import CHIPS, open_slice
from spatia_jax.parallel.aot.executable import load_executable, save_executable
from spatia_jax.parallel.aot.programs import abstract_conditions, abstract_request, sampling_program
from spatia_jax.parallel.aot.search import Choice, default_mesh, ladders, search
from spatia_jax.parallel.rematerialisation import REMATS
from spatia_jax.plan.plan import abstract_weights, clip_arrays

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -r requirements-aot.txt"
)


def for_tpu():
    """The micro experiment with heads as wide as a TPU's lanes, so that attention runs in its kernel."""
    config = micro()
    transformer = dataclasses.replace(config.transformer, dtype="bfloat16", dim=256, num_heads=2, ffn_dim=256)
    stage = dataclasses.replace(config.training.stage1, batch_size=4)
    training = dataclasses.replace(config.training, stage1=stage, stage2=stage)
    return dataclasses.replace(config, transformer=transformer, training=training, guidance=1.0)


@needs_libtpu
def test_a_denoising_step_for_four_chips(tmp_path):
    """What the command prints and writes: bytes by class, kernels priced, and the collectives of this mesh alone."""
    args = command.AotArgs(
        for_tpu(), "v5e:2x2", "sample", mesh=MeshConfig(fsdp=2, context=2), json=tmp_path / "out.json"
    )
    command.run(args)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["fits"]
    assert found["hbm_bytes"] == CHIPS["v5e"].hbm_bytes
    assert sum(found["bytes"].values()) == found["peak_bytes"] < found["hbm_bytes"]
    assert found["bytes"]["padding"] >= 0
    assert found["estimated_step_s"] >= found["seconds"]["kernels"] > 0
    assert 0 < found["implied_mfu"] < 1
    assert not found["not_priced"]
    # Ulysses exchanges tokens for heads; fsdp gathers parameters.
    assert found["collectives"]["all-to-all"]["count"] % 2 == 0
    assert found["collectives"]["all-gather"]["count"] > 0


@pytest.mark.slow
def test_shapes_are_those_that_sampling_passes_on():
    model = Model(micro())
    arrays = clip_arrays(model, abstract_weights(model, "float32"), opening=False)
    for ours, real in ((abstract_conditions(model), arrays.conditions), (abstract_request(model), arrays.request)):
        assert jax.tree.structure(ours) == jax.tree.structure(real)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(real), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.slow
def test_a_saved_program_runs_as_the_compiled_one(tmp_path):
    """On the CPU: saved, loaded, and the same bits."""
    model, mesh = Model(micro()), make_mesh(MeshConfig(), jax.devices()[:1])
    program = sampling_program("sample", model, mesh, "float32")
    compiled = program.compile(mesh)
    save_executable(tmp_path / "step", compiled, model.config, {})
    loaded = load_executable(tmp_path / "step", program.function, program.arguments, model.config, mesh)
    rng = np.random.default_rng(0)

    def filled(leaf):
        value = rng.normal(size=leaf.shape) if leaf.dtype != bool else np.arange(leaf.shape[0]) < 3
        return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)

    arguments = jax.tree.map(filled, program.arguments)
    expected, found = compiled(*arguments), loaded(*arguments)
    assert isinstance(found, diffusion.SamplerState)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    other = sampling_program("decode", model, mesh, "float32")
    with pytest.raises(InputError, match="made for something else: arguments .*, here "):
        load_executable(tmp_path / "step", other.function, other.arguments, model.config, mesh)
    changed = dataclasses.replace(model.config, guidance=2.0)
    with pytest.raises(InputError, match="made for something else: config .*, here "):
        load_executable(tmp_path / "step", program.function, program.arguments, changed, mesh)
    with pytest.raises(InputError, match="no executable"):
        load_executable(tmp_path / "nothing", program.function, program.arguments, model.config, mesh)


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "chip 'v9' is not known; write e.g. v5p:4x4x4 .* one of v4, v5e, v5p, v6e"),
        ("v5p:3x3", "libtpu knows no such slice"),
    ],
)
def test_a_slice_that_does_not_exist(topology, message):
    with pytest.raises(InputError, match=message):
        open_slice(topology)


@needs_libtpu
def test_slices():
    for name, shape in (("v5p:4x4x4", (4, 4, 4)), ("v6e:2x4", (2, 4, 1)), ("v4:2x2x1", (2, 2, 1))):
        place = open_slice(name)
        assert place.shape == shape
        assert len(place.devices) == np.prod(shape)


def test_a_mesh_of_another_size_is_refused_before_compiling():
    with pytest.raises(InputError, match=r"fsdp 3 .* is 3 devices; there are 4"):
        command.run(command.AotArgs(for_tpu(), "v5e:2x2", "sample", mesh=MeshConfig(fsdp=3)))


def test_search_keeps_all_chips_busy():
    assert default_mesh("train", 64) == MeshConfig(fsdp=64)
    assert default_mesh("sample", 4) == MeshConfig(context=4)
    start = Choice(for_tpu(), "train", "stage1", default_mesh("train", 4), "bfloat16")
    ladders_of_training = list(ladders(start, 4))
    for ladder in ladders_of_training:
        assert [choice.config.transformer.remat for choice in ladder] == list(REMATS)
        assert all(choice.mesh.num_devices == 4 for choice in ladder)
    batches = {ladder[0].config.training.stage1.batch_size for ladder in ladders_of_training}
    assert batches == {4, 8}
    sampling = [ladder[0].mesh for ladder in ladders(dataclasses.replace(start, kind="sample"), 4)]
    assert sampling == [MeshConfig(context=4), MeshConfig(context=2, tensor=2), MeshConfig(tensor=4)]


@needs_libtpu
@pytest.mark.slow
def test_search_prints_what_it_tried_and_returns_the_fastest():
    said: list[str] = []
    start = Choice(for_tpu(), "sample", "stage1", MeshConfig(context=4), "bfloat16")
    best, compiled = search(start, open_slice("v5e:2x2"), said.append)
    assert best.fits
    assert compiled is not None
    times = [float(line.split(" s, MFU")[0].rsplit(" ")[-1]) for line in said if "MFU" in line]
    assert best.cost.seconds <= min(times) + 1e-3
    assert any("does not divide" in line for line in said), "four parts of two heads"

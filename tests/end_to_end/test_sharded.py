"""A run whose networks are spread over four devices, from either form of weights, against one on a single device."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from spatia_jax.sampling import command
from spatia_jax.sampling.outputs import load_clip
from spatia_jax.weights.orbax import write_orbax
from spatia_jax.weights.store import read_arrays

CLIPS = 2
CACHE = ("--text-cache", "texts")
PROGRAM = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 4)
from spatia_jax.sampling import command, compiled
load, sharded = command.load_network, []
def watched(*args, **options):
    params = load(*args, **options)
    sharded.extend(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    return params
command.load_network = watched
status = command.main(sys.argv[1:])
assert sum(sharded) > 50, "hardly anything was sharded"
assert compiled.versions() == {"before": 2, "step": 2, "after": 2}, compiled.versions()
sys.exit(status)
"""


def arguments(micro, weights, output, *options):
    start = [micro.config_file, "--image", micro.photo, "--weights", weights, "--clips", CLIPS]
    return [str(a) for a in (*start, "--path", "pan left 20", "--prompt", "a room", "--output", output, *options)]


@pytest.fixture(scope="module")
def whole(micro, tmp_path_factory):
    """Frames of a run on one device."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert command.main(arguments(micro, micro.weights, output)) == 0
    return frames(output)


@pytest.fixture(scope="module")
def mixed(micro, tmp_path_factory):
    """The same weights, some of them as Orbax folders."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "tokenizer.json").write_bytes((micro.weights / "tokenizer.json").read_bytes())
    for name in ("transformer", "depth"):
        write_orbax(folder / name, read_arrays(micro.weights / f"{name}.safetensors"))
    for name in ("autoencoder", "text_encoder", "inpainter"):
        (folder / f"{name}.safetensors").write_bytes((micro.weights / f"{name}.safetensors").read_bytes())
    return folder


def frames(output):
    return np.concatenate([load_clip(output, k).frames for k in range(CLIPS)]).astype(int)


def test_orbax_and_safetensors_give_the_same_bits(micro, whole, mixed, tmp_path):
    assert command.main(arguments(micro, mixed, tmp_path / "out")) == 0
    np.testing.assert_array_equal(frames(tmp_path / "out"), whole)


@pytest.mark.parametrize(
    "axes", [("fsdp", "tensor"), pytest.param(("fsdp", "context"), marks=pytest.mark.slow)], ids=" ".join
)
def test_four_devices_give_the_frames_of_one(axes, micro, whole, mixed, tmp_path):
    """In a process of its own, since the number of CPU devices is fixed when JAX starts."""
    mesh = [option for axis in axes for option in (f"--mesh.{axis}", 2)]
    options = arguments(micro, mixed, tmp_path / "out", *mesh)
    subprocess.run([sys.executable, "-c", PROGRAM, *options], check=True)
    difference = np.abs(frames(tmp_path / "out") - whole)
    # Products are summed in another order; a byte may fall to the other side.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.05


def test_a_run_depends_on_no_cache(micro, whole, tmp_path):
    """Same bits and same job, so that a run begun without a cache is resumed with one, and the other way round."""
    jobs = []
    for name, options in {"plain": (), "filling": CACHE, "filled": CACHE}.items():
        options = [str(tmp_path / o) if o == CACHE[1] else o for o in options]
        assert command.main(arguments(micro, micro.weights, tmp_path / name, *options)) == 0
        np.testing.assert_array_equal(frames(tmp_path / name), whole)
        jobs.append((tmp_path / name / "job.json").read_text())
    assert len(set(jobs)) == 1
    assert len(list((tmp_path / CACHE[1]).iterdir())) == 2


@pytest.mark.slow
def test_bfloat16_weights_are_another_run_with_nearly_the_same_frames(micro, whole, tmp_path):
    options = arguments(micro, micro.weights, tmp_path / "out", "--weights-dtype", "bfloat16")
    assert command.main(options) == 0
    assert np.abs(frames(tmp_path / "out")[:5] - whole[:5]).mean() < 2
    status = command.main([*arguments(micro, micro.weights, tmp_path / "out"), "--resume"])
    assert status == 2


def test_a_mesh_that_the_machine_does_not_have_is_refused(micro, tmp_path, capsys):
    assert command.main(arguments(micro, micro.weights, tmp_path / "out", "--mesh.fsdp", 7)) == 2
    assert "is 7 devices; there are 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

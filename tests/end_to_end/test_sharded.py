"""A run whose networks are spread over four devices, from either form of weights, against one on a single device."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest

from spatia_jax.sampling import command
from spatia_jax.sampling.outputs import load_clip
from spatia_jax.weights.orbax import write_orbax
from spatia_jax.weights.store import read_arrays

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
assert set(compiled.versions().values()) == {int(sys.argv[sys.argv.index("--clips") + 1])}, compiled.versions()
sys.exit(status)
"""


def arguments(micro, weights, output, *options, clips):
    start = [micro.config_file, "--image", micro.photo, "--weights", weights, "--clips", clips]
    return [str(a) for a in (*start, "--path", "pan left 20", "--prompt", "a room", "--output", output, *options)]


@pytest.fixture(scope="module")
def whole(micro, tmp_path_factory):
    """Frames of a run of so many clips on one device."""

    @functools.cache
    def run(clips):
        output = tmp_path_factory.mktemp("whole") / "out"
        assert command.main(arguments(micro, micro.weights, output, clips=clips)) == 0
        return frames(output, clips)

    return run


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


def frames(output, clips):
    return np.concatenate([load_clip(output, k).frames for k in range(clips)]).astype(int)


def test_orbax_and_safetensors_give_the_same_bits(micro, whole, mixed, tmp_path):
    assert command.main(arguments(micro, mixed, tmp_path / "out", clips=1)) == 0
    np.testing.assert_array_equal(frames(tmp_path / "out", 1), whole(1))


@pytest.mark.parametrize(
    ("axes", "clips"),
    [(("fsdp", "tensor"), 1), pytest.param(("fsdp", "context"), 2, marks=pytest.mark.slow)],
    ids=["fsdp tensor", "fsdp context"],
)
def test_four_devices_give_the_frames_of_one(axes, clips, micro, whole, mixed, tmp_path):
    """In a process of its own, since the number of CPU devices is fixed when JAX starts."""
    mesh = [option for axis in axes for option in (f"--mesh.{axis}", 2)]
    options = arguments(micro, mixed, tmp_path / "out", *mesh, clips=clips)
    subprocess.run([sys.executable, "-c", PROGRAM, *options], check=True)
    difference = np.abs(frames(tmp_path / "out", clips) - whole(clips))
    # Products are summed in another order; a byte may fall to the other side.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.05

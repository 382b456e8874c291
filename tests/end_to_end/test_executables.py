"""A run with compiled programs from a folder against one that compiles: the same bits, and no silent mix-up."""

import os
import subprocess
import sys

import numpy as np
import pytest

from spatia_jax.sampling.outputs import load_clip

# On CPU the others cannot always be saved (docs/aot.md).
PIECES = {f"{piece}-{kind}" for piece in ("before", "step") for kind in ("opening", "continuing")}


def run(micro, output, *options):
    """Frames of a run of its own, and what it said.

    The tests' own XLA_FLAGS leave XLA's optimisation out; programs of that kind do not run after loading (jax 0.10.2).
    """
    start = [micro.config_file, "--image", micro.photo, "--depth", micro.depth, "--weights", micro.weights]
    arguments = [*start, "--path", "pan left 20", "--clips", 2, "--output", output, *options]
    program = "import sys; from spatia_jax.sampling import command; sys.exit(command.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.concatenate([load_clip(output, index).frames for index in range(2)]), done.stdout


@pytest.mark.slow
def test_kept_programs_give_the_same_bits_and_others_are_compiled_again(micro, tmp_path):
    expected, _ = run(micro, tmp_path / "compiled")
    kept = ("--executables", tmp_path / "kept")
    for word in ("compiled and kept", "loaded"):
        found, said = run(micro, tmp_path / word, *kept)
        np.testing.assert_array_equal(found, expected)
        assert {line.split(" ")[1][:-1] for line in said.splitlines() if line.endswith(word)} >= PIECES
    (tmp_path / "kept" / "before-opening").write_bytes(b"something else")
    _, said = run(micro, tmp_path / "other", *kept, "--guidance", "2.0")
    assert "before-opening: no executable is there" in said
    assert said.count("was made for something else: config") >= 3

"""A run with compiled programs from a folder against one that compiles: the same bits, and no silent mix-up."""

import numpy as np
import pytest

from spatia_jax.sampling import command
from spatia_jax.sampling.outputs import load_clip

PIECES = {f"{piece}-{kind}" for piece in ("before", "step", "after") for kind in ("opening", "continuing")}


def frames(micro, output, *options):
    start = [micro.config_file, "--image", micro.photo, "--depth", micro.depth, "--weights", micro.weights]
    arguments = [*start, "--path", "pan left 20", "--clips", 2, "--output", output, *options]
    assert command.main([str(argument) for argument in arguments]) == 0
    return np.concatenate([load_clip(output, index).frames for index in range(2)])


@pytest.mark.slow
def test_kept_programs_give_the_same_bits_and_others_are_compiled_again(micro, tmp_path, capsys):
    expected = frames(micro, tmp_path / "compiled")
    kept = ("--executables", tmp_path / "kept")
    capsys.readouterr()
    for word in ("compiled and kept", "loaded"):
        np.testing.assert_array_equal(frames(micro, tmp_path / word, *kept), expected)
        said = capsys.readouterr().out
        assert {line.split(" ")[1][:-1] for line in said.splitlines() if line.endswith(word)} == PIECES
    (tmp_path / "kept" / "after-opening").write_bytes(b"something else")
    frames(micro, tmp_path / "other", *kept, "--guidance", "2.0")
    said = capsys.readouterr().out
    assert "after-opening: no executable is there" in said
    assert said.count("was made for something else: config") == 5

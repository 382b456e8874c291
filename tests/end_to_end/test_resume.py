"""A run that is killed and resumed gives the bits of one that was not."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from spatia_jax.sampling import command
from spatia_jax.sampling.outputs import load_clip

CLIPS = 3


def arguments(micro, output, *options):
    start = [micro.config_file, "--image", micro.photo, "--depth", micro.depth, "--weights", micro.weights]
    path = ["--path", "pan left 20; there and back", "--clips", CLIPS]
    return [str(a) for a in (*start, *path, "--output", output, *options)]


def made(output):
    """All arrays that a run leaves: the clips' pictures and the last world."""
    arrays = {f"world.{name}": value for name, value in np.load(output / "world" / "arrays.npz").items()}
    for index in range(CLIPS):
        clip = load_clip(output, index)
        arrays |= {f"{index}.{name}": getattr(clip, name) for name in ("frames", "projection", "holes", "references")}
    return arrays


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(micro, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    assert command.main(arguments(micro, output)) == 0
    return made(output)


@pytest.mark.parametrize("clip", range(CLIPS))
@pytest.mark.parametrize("after", ["nothing", "the clip", "the world"])
def test_stopped_between_any_two_writes(clip, after, micro, uninterrupted, tmp_path, monkeypatch):
    """The run dies before clip k is written, after it, or after its world; then it is resumed."""
    keep_clip, save_world = command.keep_clip, command.save_world
    count = {"clips": 0, "worlds": 0}

    def keep(folder, index, *rest):
        if after == "nothing" and index == clip:
            raise KeyboardInterrupt
        keep_clip(folder, index, *rest)
        if after == "the clip" and index == clip:
            raise KeyboardInterrupt
        count["clips"] += 1

    def save(*args):
        save_world(*args)
        count["worlds"] += 1
        if after == "the world" and count["worlds"] == clip + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "keep_clip", keep)
    monkeypatch.setattr(command, "save_world", save)
    assert command.main(arguments(micro, tmp_path / "out")) == 130
    monkeypatch.undo()
    assert command.main(arguments(micro, tmp_path / "out", "--resume")) == 0
    assert_same(made(tmp_path / "out"), uninterrupted)
    for name in ("video.mp4", "report.html", "point_map.ply", "manifest.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_killed_without_warning(micro, uninterrupted, tmp_path):
    """SIGKILL as soon as the second clip is on disk; whatever was being written then is dropped."""
    output = tmp_path / "out"
    program = "import sys; from spatia_jax.sampling.command import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments(micro, output)], env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    deadline = time.monotonic() + 600
    while not (output / "clips" / "0001.npz").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert command.main(arguments(micro, output, "--resume")) == 0
    assert_same(made(output), uninterrupted)


def test_a_saved_world_goes_on_and_branches(micro, tmp_path):
    first, left, right = (tmp_path / name for name in ("first", "left", "right"))
    options = ["--weights", micro.weights, "--clips", "1"]
    start = ["--image", micro.photo, "--depth", micro.depth]
    assert command.main([str(a) for a in (micro.config_file, *start, *options, "--output", first)]) == 0
    for output, path in ((left, "pan left 30"), (right, "pan right 30")):
        more = ["--from-world", first / "world", "--path", path, *options, "--output", output]
        assert command.main([str(a) for a in (micro.config_file, *more)]) == 0
    a, b = load_clip(left, 1), load_clip(right, 1)
    assert not np.array_equal(a.frames, b.frames)
    for output in (left, right):
        with np.load(output / "world" / "arrays.npz") as world:
            assert int(world["clip_index"]) == 2
            assert int(world["frame_count"]) == 5 + 4

"""Bad input: one clear line on standard error, exit status 2, and nothing written over."""

import errno
import json
import shutil

import numpy as np
import pytest

from spatia_jax.io.images import write_png
from spatia_jax.sampling.command import main

IDENTITY = "[[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]\n"
FOCAL = "0.8 1.6 0.5 0.5\n"


def text(name, content):
    """A file of that content; returns its path when called with a folder."""

    def make(folder):
        (folder / name).write_text(content)
        return str(folder / name)

    return make


def poses(content, intrinsics=FOCAL):
    """A folder with a camera file; returns the file."""

    def make(folder):
        (folder / "intrinsics.txt").write_text(intrinsics)
        (folder / "w2c.txt").write_text(content)
        return str(folder / "w2c.txt")

    return make


def picture(shape, name="other.png", value=0):
    def make(folder):
        write_png(folder / name, np.full(shape, value, np.uint8 if len(shape) == 3 else np.uint16))
        return str(folder / name)

    return make


def nan_depth(folder):
    np.save(folder / "depth.npy", np.full((32, 64), np.nan, np.float32))
    return str(folder / "depth.npy")


CASES = {
    "image is missing": (["--image", "nowhere.png"], ["nowhere.png", "no such image"]),
    "image is no image": (["--image", text("photo.jpg", "hello")], ["photo.jpg"]),
    "depth is missing": (["--image", "PHOTO", "--depth", "nowhere.png"], ["nowhere.png"]),
    "depth has another size": (["--image", "PHOTO", "--depth", picture((10, 10), value=900)], ["10", "64"]),
    "depth has no reading": (["--image", "PHOTO", "--depth", picture((32, 64))], ["no pixel of this depth"]),
    "depth is NaN": (["--image", "PHOTO", "--depth", nan_depth], ["no pixel of this depth"]),
    "depth without image": (["--depth", "DEPTH"], ["--image"]),
    "mask has another size": (["--image", "PHOTO", "--mask", picture((10, 10, 3))], ["mask", "10"]),
    "mask hides everything": (["--image", "PHOTO", "--depth", "DEPTH", "--mask", picture((32, 64, 3), value=255)],
                              ["no point of the picture"]),
    "one camera": (["--image", "PHOTO", "--cameras", poses(IDENTITY)], ["at least 2 views"]),
    "too few cameras": (["--image", "PHOTO", "--cameras", poses(IDENTITY * 5), "--clips", "3"], ["--clips 3"]),
    "not a rotation": (["--image", "PHOTO", "--cameras", poses(IDENTITY + IDENTITY.replace("[1,0,0,0]", "[2,0,0,0]"))],
                       [":2", "rotation"]),
    "a reflection": (["--image", "PHOTO", "--cameras", poses(IDENTITY + IDENTITY.replace("[1,0,0,0]", "[-1,0,0,0]"))],
                     [":2"]),
    "malformed line": (["--image", "PHOTO", "--cameras", poses(IDENTITY * 2 + "[[1,0,0\n")], [":3"]),
    "NaN pose": (["--image", "PHOTO", "--cameras", poses(IDENTITY + IDENTITY.replace("[1,0,0,0]", "[1,0,0,NaN]"))],
                 [":2"]),
    "empty camera file": (["--image", "PHOTO", "--cameras", poses("")], ["w2c.txt"]),
    "no camera file": (["--image", "PHOTO", "--cameras", "nowhere.txt"], ["nowhere.txt"]),
    "pixel intrinsics": (["--image", "PHOTO", "--cameras", poses(IDENTITY * 5, "500 500 32 16\n")], ["pixels"]),
    "negative focal length": (["--image", "PHOTO", "--cameras", poses(IDENTITY * 5, "-0.8 1.6 0.5 0.5\n")], ["focal"]),
    "unknown path word": (["--image", "PHOTO", "--path", "fly away"], ["fly", "pan left"]),
    "path amount in the wrong unit": (["--image", "PHOTO", "--path", "pan left 2m"], ["pan"]),
    "path and cameras": (["--image", "PHOTO", "--path", "pan left", "--cameras", "x.txt"], ["either --cameras"]),
    "empty prompt": (["--image", "PHOTO", "--prompt", " "], ["--prompt is empty"]),
    "empty prompt file": (["--image", "PHOTO", "--prompts", text("p.txt", "\n")], ["p.txt", "empty"]),
    "prompt file is missing": (["--image", "PHOTO", "--prompts", "nowhere.txt"], ["nowhere.txt"]),
    "prompt and prompt file": (["--image", "PHOTO", "--prompt", "a", "--prompts", "b.txt"], ["either --prompt"]),
    "no clips": (["--image", "PHOTO", "--clips", "0"], ["--clips is 0"]),
    "every 0": (["--image", "PHOTO", "--every", "0"], ["--every is 0"]),
    "field of view": (["--image", "PHOTO", "--fov", "500"], ["--fov is 500"]),
    "image and sequence": (["--image", "PHOTO", "--sequence", "."], ["--image", "--sequence"]),
    "empty sequence": (["--sequence", "."], ["no frame-"]),
    "no weights": (["--image", "PHOTO", "--weights", "nowhere"], ["nowhere", "weights"]),
    "weights of another size": (["--image", "PHOTO", "--text-encoder.ffn-dim", "32"], ["text_encoder", "does not fit"]),
    "capacity too small": (["--image", "PHOTO", "--memory.capacity", "100"], ["memory.capacity", "2048"]),
    "frames not 4k + 1": (["--image", "PHOTO", "--clip.opening-frames", "6"], ["opening_frames", "4k + 1"]),
    "unknown solver": (["--image", "PHOTO", "--sampler.solver", "magic"], ["magic", "unipc"]),
    "no world": (["--from-world", "."], ["not a saved world"]),
    "nothing to resume": (["--image", "PHOTO", "--resume"], ["--resume"]),
}  # fmt: skip


def call(arguments, capsys):
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:  # the option parser's own way out
        status = stop.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line(case, micro, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, fragments = CASES[case]
    known = {"PHOTO": micro.photo, "DEPTH": micro.depth}
    options = [known.get(o, o) if isinstance(o, str) else o(tmp_path) for o in options]
    if "--weights" not in options:
        options += ["--weights", micro.weights]
    status, message = call([micro.config_file, *options, "--output", tmp_path / "out"], capsys)
    assert status == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    for fragment in fragments:
        assert fragment in message, message
    assert not (tmp_path / "out").exists()


def run(micro, output, *options):
    return ["--image", micro.photo, "--depth", micro.depth, "--weights", micro.weights, "--clips", "1", *options,
            "--output", output]  # fmt: skip


@pytest.fixture(scope="module")
def finished(micro, tmp_path_factory):
    """A finished run of one clip."""
    output = tmp_path_factory.mktemp("finished") / "out"
    assert main([str(a) for a in (micro.config_file, *run(micro, output))]) == 0
    return output


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_full_output_folder_is_not_written_over(micro, finished, capsys):
    before = content(finished)
    status, message = call([micro.config_file, *run(micro, finished)], capsys)
    assert status == 2
    assert "is not empty" in message
    assert content(finished) == before


def test_a_run_is_not_resumed_with_other_inputs(micro, finished, capsys):
    before = content(finished)
    status, message = call([micro.config_file, *run(micro, finished, "--resume", "--seed", "1")], capsys)
    assert status == 2
    assert "other inputs" in message
    assert content(finished) == before


def test_a_world_of_another_config_is_refused(micro, finished, tmp_path, capsys):
    status, message = call(
        [micro.config_file, "--from-world", finished / "world", "--weights", micro.weights, "--output", tmp_path / "o",
         "--memory.capacity", "5000"], capsys)  # fmt: skip
    assert status == 2
    assert "other clip or memory sizes" in message


def test_a_broken_world_is_refused(micro, finished, tmp_path, capsys):
    shutil.copytree(finished / "world", tmp_path / "world")
    (tmp_path / "world" / "arrays.npz").write_bytes(b"PK")
    status, message = call([micro.config_file, "--from-world", tmp_path / "world", "--weights", micro.weights,
                            "--output", tmp_path / "o"], capsys)  # fmt: skip
    assert status == 2
    assert "cannot be read as a saved world" in message


def test_a_full_disk_keeps_what_was_there(micro, tmp_path, capsys, monkeypatch):
    from spatia_jax.sampling import saved_world

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saved_world.np, "savez", full)
    status, message = call([micro.config_file, *run(micro, tmp_path / "out")], capsys)
    assert status == 2
    assert "disk is full" in message
    assert (tmp_path / "out" / "clips" / "0000.npz").is_file()  # what was written before stays
    assert json.loads((tmp_path / "out" / "job.json").read_text())["fingerprint"]


def test_an_image_of_another_shape_is_fitted_and_said(micro, tmp_path, capsys):
    write_png(tmp_path / "tall.png", np.full((90, 60, 3), 128, np.uint8))
    status = main([str(a) for a in (micro.config_file, "--image", tmp_path / "tall.png", "--weights", micro.weights,
                                    "--clips", "1", "--output", tmp_path / "out")])  # fmt: skip
    assert status == 0
    assert "60x90 resized to 64x32" in capsys.readouterr().out

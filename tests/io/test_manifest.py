import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from spatia_jax.errors import InputError
from spatia_jax.io import read_manifest, verify, write_manifest


@dataclasses.dataclass(frozen=True)
class _Sampler:
    steps: int = 12
    shift: np.float32 = dataclasses.field(default_factory=lambda: np.float32(5))
    image: Path = Path("/elsewhere/someone/photo.jpg")


@pytest.fixture
def run(tmp_path):
    """An output folder with its manifest, and the folders that its inputs and weights lie in."""
    inputs, weights, out = tmp_path / "someone", tmp_path / "weights", tmp_path / "out"
    for folder in (inputs, weights, out):
        folder.mkdir()
    (inputs / "photo.jpg").write_bytes(b"photo")
    (weights / "a.safetensors").write_bytes(b"a")
    (out / "video.mp4").write_bytes(b"video")
    write_manifest(
        out / "manifest.json",
        config={"sampler": _Sampler(), "path": "there and back"},
        seed=7,
        inputs={"image": inputs / "photo.jpg"},
        weights={"generator": weights},
        outputs={"video": out / "video.mp4"},
        arguments=["/usr/bin/sample.py", f"--image={inputs}/photo.jpg", "--prompt", "a/b, and so on"],
    )
    return tmp_path


def test_unchanged_files_verify(run):
    assert verify(run / "out" / "manifest.json", [run / "someone", run]) == []


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("someone/photo.jpg", "inputs.image"),
        ("weights/a.safetensors", "weights.generator"),
        ("out/video.mp4", "outputs.video"),
    ],
)
def test_every_change_is_found_and_named(run, file, named):
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[:-1] + b"!")
    (difference,) = verify(run / "out" / "manifest.json", [run / "someone", run])
    assert difference.startswith(f"{named}: ")
    assert "has changed" in difference


def test_renamed_file_inside_a_folder_is_a_change(run):
    (run / "weights" / "a.safetensors").rename(run / "weights" / "b.safetensors")
    assert len(verify(run / "out" / "manifest.json", [run / "someone", run])) == 1


def test_absent_file_is_named(run):
    shutil.rmtree(run / "someone")
    (difference,) = verify(run / "out" / "manifest.json", [run])
    assert "photo.jpg not found" in difference


def test_nothing_of_the_machine_is_inside(run):
    text = (run / "out" / "manifest.json").read_text()
    for private in (str(run), "someone", "/home", "/usr", str(Path.home())):
        assert private not in text
    manifest = json.loads(text)
    assert manifest["command"] == ["sample.py", "--image=photo.jpg", "--prompt", "a/b, and so on"]
    assert manifest["config"]["sampler"] == {"steps": 12, "shift": 5.0, "image": "photo.jpg"}
    assert manifest["seed"] == 7
    assert {"python", "jax", "jaxlib", "flax", "spatia_jax"} <= manifest["versions"].keys()


def test_other_json_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("hello")
    for name, message in [
        ("list.json", "lacks config"),
        ("text.json", "cannot be read"),
        ("none.json", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=message):
            read_manifest(tmp_path / name)

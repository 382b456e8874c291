"""Released files, with random values, through conversion and sample.py at the released setting made small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights.synthetic_release import official_tensors, write_release

from spatia_jax.cameras import Cameras, write_cameras
from spatia_jax.config import load_experiment
from spatia_jax.io.images import write_png
from spatia_jax.io.video import read_video
from spatia_jax.model import Model
from spatia_jax.pixels import to_bytes
from spatia_jax.sampling import command
from spatia_jax.sampling.driver import decode_jointly
from spatia_jax.sampling.outputs import load_clip
from spatia_jax.weights.bundle import load_network, load_weights
from spatia_jax.weights.convert import convert
from spatia_jax.weights.store import save_params

CONFIG = Path(__file__).parents[1] / "configs" / "released.py"
FRAMES = 22  # clips of 9, 8 and 8 frames, the last one padded by 3
CLIPS = 3


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A converted release, and what the released script is given: a photo, w2c.txt, intrinsics.txt, prompts."""
    folder = tmp_path_factory.mktemp("release")
    write_release(folder / "downloads", official_tensors())
    convert(folder / "downloads", folder / "weights", load_experiment(CONFIG))
    rng = np.random.default_rng(0)
    write_png(folder / "photo.png", np.kron(rng.integers(0, 255, (4, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (FRAMES, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 0.3, FRAMES)
    intrinsics = np.tile(np.float32([0.8246, 1.4609 * 32 / 36, 0.52, 0.5]), (FRAMES, 1))
    cameras = Cameras(jnp.asarray(poses), jnp.asarray(intrinsics))
    write_cameras(folder / "w2c.txt", cameras)
    (folder / "prompts.txt").write_text("a kitchen\na kitchen with a cow\n", encoding="utf-8")
    return folder


def run(job: Path, output: Path, *options: str, weights: Path | None = None) -> SimpleNamespace:
    arguments = [
        CONFIG, "--image", job / "photo.png", "--cameras", job / "w2c.txt", "--prompts", job / "prompts.txt",
        "--weights", weights or job / "weights", "--output", output, *options,
    ]  # fmt: skip
    assert command.main([str(argument) for argument in arguments]) == 0
    clips = [load_clip(output, k) for k in range(CLIPS)]
    video, _ = read_video(output / "video.mp4")
    return SimpleNamespace(clips=clips, video=video, manifest=json.loads((output / "manifest.json").read_text()))


@pytest.fixture(scope="module")
def made(job):
    return run(job, job / "out")


def test_a_release_goes_through(made):
    assert [len(clip.frames) for clip in made.clips] == [9, 8, 8]
    assert len(made.video) == FRAMES
    assert all(clip.frames.std() > 1 for clip in made.clips)
    assert {"transformer", "autoencoder", "text_encoder", "depth", "lora"} <= set(made.manifest["weights"])


def test_the_lora_acts_from_the_second_clip_on(job, made, tmp_path):
    weights = Path(shutil.copytree(job / "weights", tmp_path / "weights"))
    model = Model(load_experiment(CONFIG))
    lora = load_network(model, weights, "lora")
    shutil.rmtree(weights / "lora")
    save_params(weights / "lora.safetensors", jax.tree.map(jnp.zeros_like, lora))
    base = run(job, tmp_path / "out", weights=weights)
    np.testing.assert_array_equal(base.clips[0].latents, made.clips[0].latents)
    assert not np.array_equal(base.clips[1].latents, made.clips[1].latents)


def test_the_video_is_one_causal_decoding_of_all_latents(job, made):
    model = Model(load_experiment(CONFIG))
    params, _ = load_weights(model, job / "weights")
    together = np.concatenate([clip.latents for clip in made.clips])
    assert len(together) == 1 + 8 // 4 + 2 * 8 // 4
    whole = to_bytes(jax.jit(model.decode)(params, together[None])[0])
    streamed = decode_jointly(model, params, made.clips)
    assert len(whole) == len(streamed) == 25
    assert np.abs(np.asarray(whole, int) - streamed).max() <= 1
    later = decode_jointly(model, params, made.clips[1:], jnp.asarray(made.clips[0].frames))
    assert len(later) == 16

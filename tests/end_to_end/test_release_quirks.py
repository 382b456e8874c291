"""What `--release-compatible` changes, and that nothing else does."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax import release_quirks, stages
from spatia_jax.cameras import Cameras, write_cameras
from spatia_jax.io.video import read_video
from spatia_jax.model import Model
from spatia_jax.sampling import command
from spatia_jax.sampling.outputs import load_clip
from spatia_jax.world import new_world, open_world

FRAMES = 7  # clips of 5 and 4 frames, the last one padded by 2


@pytest.fixture(scope="module")
def compatible(micro):
    return Model(dataclasses.replace(micro.model.config, release_compatible=True))


@pytest.fixture(scope="module")
def outputs(micro, tmp_path_factory):
    """The same job twice, as it is and as the release would do it."""
    folder = tmp_path_factory.mktemp("quirks")
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (FRAMES, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 0.2, FRAMES)
    intrinsics = np.tile(np.float32([0.8, 1.6, 0.55, 0.5]), (FRAMES, 1))
    write_cameras(folder / "w2c.txt", Cameras(jnp.asarray(poses), jnp.asarray(intrinsics)))
    made = {}
    for name, options in {"plain": [], "quirky": ["--release-compatible"]}.items():
        arguments = [
            micro.config_file, "--image", micro.photo, "--depth", micro.depth, "--weights", micro.weights,
            "--cameras", folder / "w2c.txt", "--output", folder / name, *options,
        ]  # fmt: skip
        assert command.main([str(argument) for argument in arguments]) == 0
        made[name] = folder / name
    return made


@pytest.mark.slow
def test_padding_stays_in_the_video(outputs):
    assert len(read_video(outputs["plain"] / "video.mp4")[0]) == FRAMES
    assert len(read_video(outputs["quirky"] / "video.mp4")[0]) == 9


@pytest.mark.slow
def test_the_principal_point_is_mirrored(outputs):
    """cx is 0.55, so the release shows the map a tenth of the width further to one side."""
    plain, quirky = (np.float32(load_clip(folder, 0).projection[0]) for folder in outputs.values())
    shifts = {shift: np.abs(np.roll(plain, shift, axis=1) - quirky)[:, 8:-8].mean() for shift in range(-8, 9)}
    assert abs(min(shifts, key=lambda shift: shifts[shift])) in (5, 6, 7)


def test_all_clips_have_one_noise(micro, compatible):
    first = new_world(micro.model, jax.random.key(5))
    later = dataclasses.replace(first, clip_index=jnp.int32(3))
    assert release_quirks.noise_key(first) == release_quirks.noise_key(later)


def test_the_map_is_thinned_and_cut_to_bytes(micro, compatible):
    height, width = micro.model.config.clip.height, micro.model.config.clip.width
    photo, depth = jnp.full((height, width, 3), 200, jnp.uint8), jnp.full((height, width), 0.5)
    camera = Cameras(jnp.eye(3, 4), jnp.asarray([0.8, 1.6, 0.5, 0.5]))
    world = open_world(micro.model, photo, depth, camera, jax.random.key(0))
    counts = [int(release_quirks.thinned(world.point_map, jnp.int32(k)).num_points) for k in (0, 16, 40)]
    assert counts[0] > counts[1] > counts[2] > 0

    views = jax.tree.map(lambda leaf: leaf[None], camera)
    color = stages.project(compatible, world, views).color * 255
    np.testing.assert_allclose(color, np.round(color), atol=1e-3)

"""What a run says about a path that returns."""

import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.sampling.inputs import fit_length, fit_prompts, split_path
from spatia_jax.sampling.outputs import closed_loop


def path(*positions):
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (len(positions), 1, 1))
    poses[:, 0, 3] = positions
    return Cameras(jnp.asarray(poses), jnp.tile(jnp.array([0.8, 1.4, 0.5, 0.5]), (len(positions), 1)))


def test_the_last_frame_is_held_against_the_photo():
    photo = np.full((32, 32, 3), 100, np.uint8)
    frames = np.stack([photo + 50, photo, photo + 51])
    found = closed_loop(photo, frames, path(0, 1, 0))
    assert found.psnr == pytest.approx(20 * np.log10(255 / 51), abs=1e-3)
    assert closed_loop(photo, frames, path(0, 1, 2)) is None


@pytest.mark.parametrize(("views", "clips", "padded"), [(5, 1, 5), (6, 2, 9), (9, 2, 9), (10, 3, 13)])
def test_a_camera_path_is_padded_to_whole_clips(views, clips, padded, micro_config):
    cameras, count, asked = fit_length(path(*range(views)), micro_config, None, continuing=False, say=print)
    assert (len(cameras), count, asked) == (padded, clips, views)
    parts = split_path(cameras, micro_config.clip, opening=True)
    assert [len(part) for part in parts] == [5] + [4] * (clips - 1)
    assert float(cameras.cam_from_world[-1, 0, 3]) == views - 1  # the last pose is repeated


def test_a_continuing_path_has_no_opening_clip(micro_config):
    cameras, count, asked = fit_length(path(*range(7)), micro_config, None, continuing=True, say=print)
    assert (len(cameras), count, asked) == (8, 2, 7)


def test_the_last_prompt_is_repeated_and_extra_ones_are_said():
    said = []
    assert fit_prompts(["a", "b"], 3, said.append) == ["a", "b", "b"]
    assert not said
    assert fit_prompts(["a", "b", "c"], 2, said.append) == ["a", "b"]
    assert "not used" in said[0]

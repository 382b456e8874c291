"""The closed-loop evaluation: its scores on pictures whose answer is known, and a run of the micro experiment."""

from pathlib import Path

import jax
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.data.procedural import caption, sample_scene
from spatia_jax.evaluation.closed_loop import WAYS, evaluate, filled_projection, score, table, true_sequence
from spatia_jax.evaluation.metrics import psnr, ssim
from spatia_jax.model import Model
from spatia_jax.splat import Projection
from spatia_jax.text import train_tokenizer

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"


def test_psnr_is_that_of_the_error():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 51))
    half = np.zeros((4, 4), bool)
    half[:2] = True
    grey[2:] = 0
    assert psnr(black, grey, ~half) > 100
    assert np.isnan(psnr(black, grey, np.zeros((4, 4), bool)))


def test_ssim_of_a_picture_with_itself_is_one():
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    assert ssim(picture, picture) == pytest.approx(1, abs=1e-5)
    assert ssim(picture, 255 - picture) < 0.5


def test_holes_are_filled_with_the_mean_of_what_is_known():
    color = np.zeros((1, 2, 2, 3), np.float32)
    color[0, 0] = 0.2, 0.4, 0.6
    coverage = np.array([[[1.0, 1.0], [0.0, 0.0]]], np.float32)
    filled, holes = filled_projection([Projection(color, coverage, coverage * 3)])
    assert (filled == np.array([51, 102, 153])).all()
    assert (holes == (coverage == 0)).all()


def test_the_given_first_frame_is_not_scored():
    truth = np.zeros((3, 8, 16, 3), np.uint8)
    frames = truth.copy()
    frames[0] = 255
    everywhere = np.ones((3, 8, 16), bool)
    assert score(frames, truth, everywhere, everywhere)["psnr_all"] > 100


def test_the_path_returns_and_is_held_out():
    config = load_experiment(CONFIG)
    truth = true_sequence(config, 0, 3)
    assert len(truth.frames) == config.clip.frames_of(3)
    np.testing.assert_array_equal(truth.cameras.cam_from_world[0], truth.cameras.cam_from_world[-1])


@pytest.mark.slow
def test_evaluation_runs_and_is_deterministic(tmp_path):
    model = Model(load_experiment(CONFIG))
    init = jax.jit(model.init, static_argnums=0)
    params = {name: init(name, jax.random.key(0, impl="rbg")) for name in model.abstract_params()}
    tokenizer = train_tokenizer([caption(sample_scene(0))], 300, tmp_path / "tokenizer.json")

    def run():
        return evaluate(
            model.config, params, tokenizer, scenes=1, clips=2, seed=0, given_depth=True, say=lambda line: None
        )

    result = run()
    assert all(np.isfinite(result[way]["psnr_return"]) for way in WAYS)
    again = run()
    assert {way: result[way] for way in WAYS} == {way: again[way] for way in WAYS}
    for way in WAYS:
        assert way in table(result)

"""The principal start: what it reconstructs is what principal components of the same blocks do."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.errors import InputError
from spatia_jax.evaluation.metrics import psnr
from spatia_jax.model import Model
from spatia_jax.models.autoencoder import AutoencoderConfig, patchify
from spatia_jax.pixels import to_bytes, to_signed
from spatia_jax.training.objectives import AutoencoderObjective
from spatia_jax.training.principal import principal_start

MICRO = load_experiment(Path(__file__).resolve().parent.parent / "configs" / "micro.py")
LATENT = 16
AUTOENCODER = AutoencoderConfig(
    dim=24, dec_dim=24, z_dim=LATENT, dim_mult=(1, 1), num_res_blocks=0, temporal_downsample=(True,),
    spatial_downsample=(False,), patch_size=8, patch_kernel=1, latent_mean=(0.0,) * LATENT, latent_std=(1.0,) * LATENT,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    transformer = dataclasses.replace(MICRO.transformer, in_dim=LATENT, out_dim=LATENT, control_in_dim=2 * LATENT)
    return Model(dataclasses.replace(MICRO, autoencoder=AUTOENCODER, transformer=transformer))


@pytest.fixture(scope="module")
def videos(micro_records):
    return np.stack([record["frames"] for record in micro_records])


@pytest.fixture(scope="module")
def fresh(model):
    return jax.jit(lambda key: model.init("autoencoder", key))(jax.random.key(0, impl="rbg"))


@pytest.fixture(scope="module")
def started(model, fresh, videos):
    return principal_start(model, fresh, videos)


@partial(jax.jit, static_argnums=0)
def reconstruct(model, params, videos):
    params = {"autoencoder": params}
    return to_bytes(model.decode(params, model.encode(params, to_signed(videos))))


def principal_components(videos):
    """PSNR of the frames after the first from LATENT components of 2 x 8 x 8 blocks."""
    patches = np.asarray(patchify(to_signed(videos[:, 1:]), 8), np.float64)
    n, t, h, w, c = patches.shape
    blocks = patches.reshape(n, t // 2, 2, h, w, c).transpose(0, 1, 3, 4, 2, 5).reshape(-1, 2 * c)
    blocks -= blocks.mean(0)
    power = np.linalg.eigvalsh(blocks.T @ blocks / len(blocks))[::-1]
    return 10 * np.log10(4 / (power[LATENT:].sum() / (2 * c)))


def test_reconstructs_like_principal_components(model, fresh, started, videos):
    bound = principal_components(videos)
    reached, random = (
        psnr(np.asarray(reconstruct(model, params, videos))[:, 1:], videos[:, 1:]) for params in (started, fresh)
    )
    assert reached > bound - 1.0
    assert reached > random + 8.0


def test_first_frame_is_no_worse_than_the_rest(model, started, videos):
    made = np.asarray(reconstruct(model, started, videos))
    assert psnr(made[:, :1], videos[:, :1]) > psnr(made[:, 1:], videos[:, 1:]) - 0.5


@pytest.mark.slow
def test_a_frozen_encoder_gets_no_gradient(model, started, videos):
    objective = AutoencoderObjective(model, freeze_encoder=True)
    keys = jax.random.split(jax.random.key(0), 2)
    gradient = jax.grad(lambda p: objective.loss(p, {"frames": videos[:2]}, keys)[0])(started)
    size = {name: sum(float(abs(leaf).max()) for leaf in jax.tree.leaves(part)) for name, part in gradient.items()}
    assert size["encoder"] == size["to_moments"] == 0
    assert size["decoder"] > 0


def test_other_architectures_are_refused():
    with pytest.raises(InputError, match="halves time only"):
        principal_start(Model(MICRO), {}, np.zeros((1, 5, 32, 64, 3), np.uint8))

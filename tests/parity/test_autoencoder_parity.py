"""The autoencoder against AutoencoderKLWan of diffusers in its Wan2.2 form.

diffusers keeps the normalisation of the latents in its pipelines and clamps what it decodes; here the test does both.
"""

import numpy as np
import pytest
from parity.peers import assert_close, imported, package, randomise, run, to_numpy, to_torch, torch

from spatia_jax.models.autoencoder import AutoencoderConfig

diffusers = package("diffusers")

pytestmark = pytest.mark.parity

CONFIG = AutoencoderConfig(dim=16, dec_dim=24)
HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def peer():
    model = diffusers.AutoencoderKLWan(
        base_dim=CONFIG.dim,
        decoder_base_dim=CONFIG.dec_dim,
        z_dim=CONFIG.z_dim,
        dim_mult=list(CONFIG.dim_mult),
        num_res_blocks=CONFIG.num_res_blocks,
        temperal_downsample=list(CONFIG.temporal_downsample),
        latents_mean=list(CONFIG.latent_mean),
        latents_std=list(CONFIG.latent_std),
        is_residual=True,
        in_channels=3 * CONFIG.patch_size**2,
        out_channels=3 * CONFIG.patch_size**2,
        patch_size=CONFIG.patch_size,
        scale_factor_temporal=CONFIG.time_factor,
        scale_factor_spatial=CONFIG.space_factor,
    )
    return randomise(model)


@pytest.fixture(scope="module")
def ours(peer, tmp_path_factory):
    return imported(peer, "autoencoder", CONFIG, tmp_path_factory.mktemp("autoencoder"))


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_autoencoder_equals_diffusers(peer, ours, frames):
    """Encode and decode; a single frame, and one and two groups of four after it."""
    rng = np.random.default_rng(frames)
    video = rng.uniform(-1, 1, (2, frames, HEIGHT, WIDTH, 3)).astype(np.float32)
    mean, std = np.float32(peer.config.latents_mean), np.float32(peer.config.latents_std)
    with torch.no_grad():
        latents = (to_numpy(peer.encode(to_torch(video)).latent_dist.mode()) - mean) / std
        decoded = to_numpy(peer.decode(to_torch(latents * std + mean)).sample)
    assert_close(run(ours, "encode", video), latents)
    assert np.mean(np.abs(decoded) < 1) > 0.5, "most values must lie within the clamp to be compared"
    assert_close(np.clip(run(ours, "decode", latents), -1, 1), decoded)

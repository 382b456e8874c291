"""The transformer without control against WanTransformer3DModel of diffusers, which is Wan2.2-TI2V-5B's too.

diffusers computes the angles of the timestep's sinusoids in float32 where the release has float64. At timestep 999 that
moves the sinusoids by 3e-5 and the output by a relative 4e-6, nearly all of the difference that is left.
"""

import numpy as np
import pytest
from parity.peers import assert_close, imported, package, randomise, run, to_numpy, to_torch, torch

from spatia_jax.models.transformer import TransformerConfig

diffusers = package("diffusers")

pytestmark = pytest.mark.parity

CONFIG = TransformerConfig(
    dim=60,
    ffn_dim=112,
    num_heads=3,
    num_layers=3,
    in_dim=6,
    out_dim=5,
    text_dim=24,
    control_layers=(),
)
BATCH, FRAMES, ROWS, COLUMNS, TEXT = 2, 4, 6, 10, 9


@pytest.fixture(scope="module")
def peer():
    model = diffusers.WanTransformer3DModel(
        patch_size=CONFIG.patch_size,
        num_attention_heads=CONFIG.num_heads,
        attention_head_dim=CONFIG.head_dim,
        in_channels=CONFIG.in_dim,
        out_channels=CONFIG.out_dim,
        text_dim=CONFIG.text_dim,
        freq_dim=CONFIG.freq_dim,
        ffn_dim=CONFIG.ffn_dim,
        num_layers=CONFIG.num_layers,
        eps=CONFIG.eps,
    )
    return randomise(model)


@pytest.fixture(scope="module")
def ours(peer, tmp_path_factory):
    return imported(peer, "transformer", CONFIG, tmp_path_factory.mktemp("transformer"))


@pytest.mark.parametrize("first", [None, 0.0], ids=["one timestep", "first frame clean"])
def test_transformer_equals_diffusers(peer, ours, first):
    """A timestep an example, and the 5B model's form of one a token, with the first frame at 0."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(BATCH, FRAMES, ROWS, COLUMNS, CONFIG.in_dim)).astype(np.float32)
    context = rng.normal(size=(BATCH, TEXT, CONFIG.text_dim)).astype(np.float32)
    timesteps = np.repeat(np.float32([[999], [356]]), FRAMES, axis=1)
    told = timesteps[:, 0]
    if first is not None:
        timesteps[:, 0] = first
        told = np.repeat(timesteps, ROWS * COLUMNS // 4, axis=1)
    with torch.no_grad():
        theirs = peer(to_torch(latents), torch.from_numpy(told), torch.from_numpy(context)).sample
    assert_close(run(ours, "__call__", latents, timesteps, context), to_numpy(theirs))

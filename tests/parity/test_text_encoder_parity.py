"""The text encoder against UMT5EncoderModel of transformers, behind the end of a text apart.

There transformers computes values that nothing reads; the Wan pipelines set them to zero, as ours does itself.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from parity.peers import assert_close, imported, package, randomise, run, torch

import spatia_jax
from spatia_jax.models.text_encoder import TextEncoderConfig

transformers = package("transformers")

pytestmark = pytest.mark.parity

CONFIG = TextEncoderConfig(vocab_size=60, dim=32, attention_dim=48, ffn_dim=64, num_heads=6, num_layers=3)
TOKENIZER = Path(spatia_jax.__file__).parent / "assets" / "tiny" / "tokenizer.json"  # a text encoder comes with one
LENGTH = 150  # further than the last bucket of distances


@pytest.fixture(scope="module")
def peer():
    config = transformers.UMT5Config(
        vocab_size=CONFIG.vocab_size,
        d_model=CONFIG.dim,
        d_kv=CONFIG.attention_dim // CONFIG.num_heads,
        d_ff=CONFIG.ffn_dim,
        num_heads=CONFIG.num_heads,
        num_layers=CONFIG.num_layers,
        relative_attention_num_buckets=CONFIG.num_buckets,
        relative_attention_max_distance=CONFIG.max_distance,
        layer_norm_epsilon=CONFIG.eps,
    )
    return randomise(transformers.UMT5EncoderModel(config))


@pytest.fixture(scope="module")
def ours(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_encoder")
    shutil.copy(TOKENIZER, folder)
    return imported(peer, "text_encoder", CONFIG, folder)


def test_text_encoder_equals_transformers(peer, ours):
    """A text that fills the width, one of 40 tokens, one of a single token."""
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array([[LENGTH], [40], [1]])
    with torch.no_grad():
        theirs = peer(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    encoded = run(ours, "__call__", ids, mask)
    assert_close(encoded, np.where(mask[..., None], theirs, 0))
    for text, own, other in zip(mask, encoded, theirs, strict=True):  # a short text on its own
        assert_close(own[text], other[text])

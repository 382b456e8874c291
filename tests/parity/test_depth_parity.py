"""Depth network against DepthAnythingForDepthEstimation of transformers, on square and other grids."""

import numpy as np
import pytest
from parity.peers import assert_close, imported, package, randomise, run, to_torch, torch

from spatia_jax.models.depth import DepthConfig

transformers = package("transformers")

pytestmark = pytest.mark.parity

CONFIG = DepthConfig(
    dim=48,
    num_layers=6,
    num_heads=3,
    position_grid=(4, 4),
    feature_layers=(1, 2, 3, 5),
    neck_dims=(8, 12, 16, 24),
    fusion_dim=16,
    head_dim=8,
    max_depth=20,
)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def peer():
    backbone = transformers.Dinov2Config(
        hidden_size=CONFIG.dim,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        mlp_ratio=CONFIG.mlp_ratio,
        image_size=CONFIG.position_grid[0] * CONFIG.patch_size,
        patch_size=CONFIG.patch_size,
        out_indices=[layer + 1 for layer in CONFIG.feature_layers],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=CONFIG.dim,
        neck_hidden_sizes=list(CONFIG.neck_dims),
        fusion_hidden_size=CONFIG.fusion_dim,
        head_hidden_size=CONFIG.head_dim,
        depth_estimation_type="metric",
        max_depth=CONFIG.max_depth,
    )
    return randomise(transformers.DepthAnythingForDepthEstimation(config))


@pytest.fixture(scope="module")
def ours(peer, tmp_path_factory):
    return imported(peer, "depth", CONFIG, tmp_path_factory.mktemp("depth"))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (9, 16)])
def test_depth_equals_transformers(peer, ours, grid):
    """The grid of the learned positions, and two to which they are resampled."""
    rows, cols = (side * CONFIG.patch_size for side in grid)
    images = np.random.default_rng(0).uniform(-1, 1, (2, rows, cols, 3)).astype(np.float32)
    normalised = (((images + 1) / 2 - MEAN) / STD).astype(np.float32)
    with torch.no_grad():
        theirs = peer(to_torch(normalised)).predicted_depth.numpy()
    assert_close(run(ours, "__call__", images), theirs)

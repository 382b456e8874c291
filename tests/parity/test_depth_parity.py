"""Depth network against the PyTorch implementation in transformers, with random weights, on square and other grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from spatia_jax.models.depth import DepthConfig, DepthNetwork
from spatia_jax.weights.depth import from_official

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

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
def official():
    torch.manual_seed(0)
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
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    with torch.no_grad():  # the default initialisation is too quiet to tell a wrong layer from a right one
        for name, parameter in model.named_parameters():
            noise = 0.3 * torch.randn_like(parameter)
            parameter.copy_(
                1 + noise if "norm" in name and name.endswith("weight") else noise / parameter.shape[-1] ** 0.25
            )
    return model


@pytest.fixture(scope="module")
def params(official, tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    official.save_pretrained(folder)  # the file layout; names in memory differ between releases of transformers
    return from_official(CONFIG, load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (9, 16)])
def test_depth_equals_transformers(official, params, grid):
    rows, cols = (side * CONFIG.patch_size for side in grid)
    images = np.random.default_rng(0).uniform(-1, 1, (2, rows, cols, 3)).astype(np.float32)
    normalised = (((images + 1) / 2 - MEAN) / STD).astype(np.float32)
    with torch.no_grad():
        expected = official(torch.from_numpy(normalised.transpose(0, 3, 1, 2))).predicted_depth.numpy()
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: DepthNetwork(CONFIG, rngs=nnx.Rngs(0))))
    depth = np.asarray(jax.jit(lambda params, images: nnx.merge(graphdef, params)(images))(params, jnp.asarray(images)))
    assert expected.std() > 0.1, "the comparison needs an output with structure"
    assert np.linalg.norm(depth - expected) / np.linalg.norm(expected - expected.mean()) < 1e-4

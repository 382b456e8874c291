"""The renderer against images of the official function (PyTorch3D)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.splat import SplatConfig, project, rasterize, render


def scene(golden_dir):
    """The golden file's arrays, its cameras, and the size of its images."""
    golden = np.load(golden_dir / "render.npz")
    height, width = map(int, golden["image_hw"])
    intrinsics = golden["intrinsics_px"] / np.array([width, height, width, height])
    poses = jnp.asarray(golden["w2c"][:, :3])
    cameras = Cameras(poses, jnp.asarray(np.tile(intrinsics, (len(poses), 1)), jnp.float32))
    return golden, cameras, height, width


@pytest.mark.parametrize("algorithm", ["auto", "peel", "stencil"])
def test_images_equal_the_official_ones(golden_dir, algorithm):
    golden, cameras, height, width = scene(golden_dir)
    config = SplatConfig(float(golden["radius_ndc"]), int(golden["points_per_pixel"]), "release", algorithm)
    projection = render(
        jnp.asarray(golden["points"]), jnp.asarray(golden["colors"]), jnp.ones(len(golden["points"]), bool), cameras,
        height=height, width=width, config=config,
    )  # fmt: skip
    errors = ((np.clip(projection.color, 0.0, 1.0) - golden["image"]) ** 2).mean(axis=(1, 2, 3))
    assert (-10 * np.log10(errors) > 80).all()
    np.testing.assert_array_equal(projection.coverage > 0, golden["coverage"][..., 0] > 0)
    np.testing.assert_allclose(projection.coverage, golden["coverage"][..., 0], atol=1e-3)


def test_all_algorithms_choose_the_same_points_on_the_same_coordinates(golden_dir):
    golden, cameras, height, width = scene(golden_dir)
    config = SplatConfig(float(golden["radius_ndc"]), int(golden["points_per_pixel"]), "release", "peel")
    valid = jnp.ones(len(golden["points"]), bool)
    for view in range(len(cameras)):
        ndc = project(jnp.asarray(golden["points"]), cameras[view], height, width, config)
        reference = rasterize(ndc, valid, height, width, config)
        assert float((reference.indices[..., 0] >= 0).mean()) > 0.1
        for algorithm in ("auto", "stencil"):
            chosen = rasterize(ndc, valid, height, width, dataclasses.replace(config, algorithm=algorithm))
            np.testing.assert_array_equal(chosen.indices, reference.indices)

"""Views and points over devices against one device. Runs in a process of its own, which has four."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh
from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.splat import SplatConfig, render, render_sharded

rng = np.random.default_rng(0)
positions = jnp.asarray(rng.uniform([-1.5, -1, 1], [1.5, 1, 3], (800, 3)), jnp.float32)
positions = positions.at[:, 2].set(jnp.round(positions[:, 2] * 8) / 8).at[5].set(jnp.nan)
features, valid = jnp.asarray(rng.random((800, 4)), jnp.float32), jnp.asarray(rng.random(800) < 0.9)
pose = jnp.broadcast_to(jnp.eye(3, 4), (4, 3, 4)).at[:, 0, 3].set(jnp.arange(4) * 0.1)
cameras = Cameras(pose, jnp.tile(jnp.array([0.9, 1.5, 0.5, 0.5]), (4, 1)))
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
size = dict(height=24, width=40, config=SplatConfig(0.08, points_per_pixel=3))
whole = render(positions, features, valid, cameras, **size)
assert float((whole.coverage > 0).mean()) > 0.5
for axes in ({"views": "data"}, {"views": "data", "points": "tensor"}):
    parts = render_sharded(positions, features, valid, cameras, mesh, **axes, **size)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)
    np.testing.assert_array_equal(whole.depth, parts.depth)

def loss(positions, features, draw, **more):
    seen = draw(positions, features, valid, cameras, **more, **size)
    return (seen.color ** 2).sum() + seen.depth.sum()

expected = jax.grad(loss, (0, 1))(positions, features, render)
split = jax.grad(lambda p, f: loss(p, f, render_sharded, mesh=mesh, views="data", points="tensor"), (0, 1))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), expected, split(positions, features))
try:
    render_sharded(positions, features, valid, cameras[:3], mesh, views="data", **size)
except InputError as error:
    assert "3 views" in str(error)
else:
    raise AssertionError
print("equal")
"""


@pytest.mark.slow
def test_views_and_points_over_devices_give_the_picture_of_one_device():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).resolve().parents[2], env=environment, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert ran.stdout.endswith("equal\n"), ran.stderr[-3000:]

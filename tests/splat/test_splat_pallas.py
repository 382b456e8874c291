"""The Pallas kernels, interpreted, against the plain forms; and that programs for other platforms are made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.splat import SplatConfig, pallas, rasterize, render, shade

H, W = 19, 150
CONFIG = SplatConfig(radius=0.25, points_per_pixel=4)


def scene(n=1200):
    rng = np.random.default_rng(0)
    ndc = rng.uniform([-8, -1.2, -0.5], [8, 1.2, 4.0], (n, 3)).astype(np.float32)
    ndc[::17], ndc[5::9, 2], ndc[3::40] = np.nan, 1.0, ndc[4]
    return jnp.asarray(ndc), jnp.asarray(rng.random(n) < 0.9), jnp.asarray(rng.random((n, 3)), jnp.float32)


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_kernels_choose_and_draw_what_the_plain_forms_do(device):
    ndc, valid, features = scene()
    radius2 = jnp.float32(CONFIG.radius) ** 2 * jnp.linspace(0.3, 1.0, len(ndc))
    expected = jax.jit(lambda *a: rasterize(a[0], valid, H, W, CONFIG, a[1]))(ndc, radius2)
    assert float((expected.indices >= 0).mean()) > 0.2
    kind = {"device": device, "interpret": True}
    indices, certified = jax.jit(lambda *a: pallas.choose(*a, H, W, CONFIG, **kind))(ndc, radius2, valid)
    np.testing.assert_array_equal(indices, expected.indices)
    assert bool(certified.all())

    def no_room():
        return jnp.full((H, W, 3), jnp.nan), jnp.zeros((H, W)), jnp.zeros((H, W))

    drawn = jax.jit(lambda *a: pallas.draw(*a, H, W, CONFIG, no_room, **kind))(ndc, radius2, valid, features)
    color, coverage = shade(expected, features)
    np.testing.assert_allclose(drawn[0], color, atol=1e-6)
    np.testing.assert_allclose(drawn[1], coverage, atol=1e-6)
    np.testing.assert_array_equal(drawn[2], jnp.maximum(expected.depth[..., 0], 0))


@pytest.mark.slow
def test_lists_without_room_are_noticed_and_the_stencil_takes_over():
    ndc, valid, _ = scene(1000)
    ndc = ndc * jnp.array([0.15, 1.0, 1.0])
    config, radius2 = SplatConfig(radius=1.5, points_per_pixel=3), jnp.float32(1.5) ** 2
    _, fits = pallas.make_lists(ndc, radius2, valid, H, W, (16, 16), config)
    assert not bool(fits)
    expected = rasterize(ndc, valid, H, W, config)
    indices, _ = jax.jit(lambda *a: pallas.choose(*a, H, W, config, device="gpu", interpret=True))(ndc, radius2, valid)
    np.testing.assert_array_equal(indices, expected.indices)


@pytest.mark.parametrize(
    ("platform", "has", "lacks"),
    [
        ("tpu", "tpu_custom_call", "spatia_splat"),
        ("cuda", "while", "spatia_splat"),
        ("cpu", "spatia_splat", "tpu_custom_call"),
    ],
)
@pytest.mark.slow
def test_a_program_has_its_platforms_kernel_and_no_other(platform, has, lacks):
    camera = Cameras(jnp.eye(3, 4)[None], jnp.array([[0.9, 1.0, 0.5, 0.5]]))

    def loss(positions, features):
        seen = render(positions, features, jnp.ones(300, bool), camera, height=H, width=W, config=CONFIG)
        return seen.color.sum()

    positions, features = jnp.ones((300, 3)), jnp.ones((300, 3))
    text = jax.jit(jax.grad(loss)).trace(positions, features).lower(lowering_platforms=(platform,)).as_text()
    assert has in text
    assert lacks not in text


@pytest.mark.slow
def test_the_gpu_kernel_lowers_to_triton():
    ndc, valid, features = scene()
    function = jax.jit(
        lambda n, f: pallas.draw(
            n,
            jnp.float32(1e-3),
            valid,
            f,
            H,
            W,
            CONFIG,
            lambda: (jnp.zeros((H, W, 3)), jnp.zeros((H, W)), jnp.zeros((H, W))),
            device="gpu",
        )
    )
    text = function.trace(ndc, features).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text

"""Depth network: shapes at any size, finite gradients, exact key mapping, and a loss that knows what it measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.depth import DepthConfig, DepthNetwork
from spatia_jax.models.depth_loss import depth_loss
from spatia_jax.models.resize import resize
from spatia_jax.weights.depth import from_official, to_official

SMALL = DepthConfig(
    dim=32,
    num_layers=4,
    num_heads=2,
    position_grid=(3, 4),
    feature_layers=(0, 1, 2, 3),
    neck_dims=(8, 12, 16, 20),
    fusion_dim=8,
    head_dim=8,
    max_depth=12.0,
)


def build(config):
    """Graph and parameters, drawn in one program."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: DepthNetwork(config, rngs=nnx.Rngs(0))))
    draw = jax.jit(lambda key: nnx.state(DepthNetwork(config, rngs=nnx.Rngs(key))))
    return graphdef, draw(jax.random.key(0, impl="rbg"))


def caller(graphdef, params):
    run = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images))
    return lambda images: run(params, images)


@pytest.fixture(scope="module")
def network():
    return build(SMALL)


@pytest.mark.parametrize("size", [(42, 56), (45, 61), (14, 84)])
def test_any_size_gives_metric_depth_of_that_size(network, size):
    graphdef, params = network
    images = jax.random.uniform(jax.random.key(0), (2, *size, 3), minval=-1)
    depth = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images))(params, images)
    assert depth.shape == (2, *size)
    assert jnp.all((depth > 0) & (depth < SMALL.max_depth))


def test_fixed_input_size_is_what_the_transformer_sees():
    config = DepthConfig(**{**vars(SMALL), "input_size": (28, 42)})
    module = caller(*build(config))
    images = jax.random.uniform(jax.random.key(0), (1, 56, 84, 3), minval=-1)
    resized = resize(images, 28, 42, "cubic")
    np.testing.assert_allclose(module(images), resize(module(resized)[..., None], 56, 84)[..., 0], rtol=1e-5)


def test_images_of_a_batch_do_not_see_each_other(network):
    module = caller(*network)
    images = jax.random.uniform(jax.random.key(1), (3, 28, 42, 3), minval=-1)
    np.testing.assert_allclose(module(images)[1:2], module(images[1:2]), rtol=1e-4)


@pytest.mark.slow
def test_gradient_is_finite_and_reaches_every_parameter(network):
    graphdef, params = network
    images = jax.random.uniform(jax.random.key(2), (1, 42, 56, 3), minval=-1)
    target = 1 + jax.random.uniform(jax.random.key(3), (1, 42, 56))

    def loss(params):
        return depth_loss(nnx.merge(graphdef, params)(images), target, target > 1.2)

    for path, gradient in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
        value = gradient[...]
        assert jnp.all(jnp.isfinite(value)), path
        # A bias shared by all keys shifts every attention logit of a query alike: its gradient is zero in theory.
        if path[-2:] != ("key", "bias"):
            assert jnp.any(value != 0), path


def test_weights_round_trip_through_official_keys(network):
    _, params = network
    official = to_official(SMALL, params)
    assert official["backbone.encoder.layer.3.attention.attention.key.weight"].shape == (32, 32)
    assert official["neck.reassemble_stage.layers.0.resize.weight"].shape == (8, 8, 4, 4)
    assert official["backbone.embeddings.position_embeddings"].shape == (1, 13, 32)
    restored = from_official(SMALL, official | {"backbone.embeddings.mask_token": np.zeros((1, 32))})
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.conv2.bias"), "head.conv2.bias is missing"),
        (lambda t: t.update(stranger=np.zeros(1)), "the first is stranger"),
        (lambda t: t.update({"head.conv1.bias": np.zeros(3)}), "conv1.bias has shape"),
    ],
)
def test_weights_of_another_network_are_refused(network, change, message):
    official = to_official(SMALL, network[1])
    change(official)
    with pytest.raises(InputError, match=message):
        from_official(SMALL, official)


def test_resize_keeps_constants_ramps_and_corners():
    ramp = jnp.linspace(0.0, 1.0, 5)[None, :, None, None] * jnp.ones((1, 1, 4, 1))
    corners = resize(ramp, 9, 4, "linear_corners")[0, :, 0, 0]
    np.testing.assert_allclose(corners, jnp.linspace(0.0, 1.0, 9), atol=1e-6)
    inner = resize(ramp, 10, 4, "linear")[0, 4:6, 0, 0]
    np.testing.assert_allclose(inner, [0.4375, 0.5625], atol=1e-6)
    for method in ("linear", "linear_corners", "cubic"):
        np.testing.assert_allclose(resize(jnp.ones((1, 5, 4, 1)), 7, 3, method), 1.0, atol=1e-6)


def test_cubic_resize_has_the_kernel_of_the_released_networks():
    impulse = jnp.zeros((1, 9, 1, 1)).at[0, 4].set(1.0)
    doubled = resize(impulse, 18, 1, "cubic")[0, :, 0, 0]
    # Keys' cubic with a = -0.75 at distances 1.75, 1.25, 0.75, 0.25
    half = [-0.03515625, -0.10546875, 0.26171875, 0.87890625]
    np.testing.assert_allclose(doubled[5:13], half + half[::-1], atol=1e-6)


def test_loss_ignores_unknown_depth_and_prefers_right_edges():
    target = jnp.where(jnp.arange(16) < 8, 2.0, 4.0) * jnp.ones((2, 16, 16))
    known = jnp.ones(target.shape, bool).at[:, 3:6].set(False)
    broken = target.at[:, 3:6].set(jnp.nan)
    assert depth_loss(target, broken, known) < 2e-3
    assert jnp.isfinite(depth_loss(target, broken, jnp.zeros_like(known)))
    soft = jnp.full_like(target, jnp.sqrt(8.0))
    scaled = 1.4 * target
    assert depth_loss(soft, target, known) > depth_loss(scaled, target, known) > depth_loss(target, target, known)

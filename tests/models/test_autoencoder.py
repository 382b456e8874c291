"""What holds for the autoencoder at any size and weights: causality, streaming, exact rewritings, weight layouts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from spatia_jax.errors import InputError
from spatia_jax.models.autoencoder import Autoencoder, AutoencoderConfig, patchify, unpatchify
from spatia_jax.models.autoencoder_layers import average_down, causal_conv, duplicate_up, upsample_conv
from spatia_jax.weights.autoencoder import abstract_params, from_official, official_shapes, to_official

CONFIG = AutoencoderConfig(
    dim=8, dec_dim=8, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True), patch_size=4
)


TIME_ONLY = dataclasses.replace(CONFIG, dim_mult=(1, 2, 2), spatial_downsample=(False, True), patch_size=8)


@pytest.fixture(scope="module", params=[CONFIG, TIME_ONLY], ids=["halving-both", "time-only-stage"])
def autoencoder(request):
    config = request.param
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) or 1
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), jnp.float32)

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.tree.map(draw, abstract_params(config)))


@pytest.fixture(scope="module")
def encode(autoencoder):
    return jax.jit(autoencoder.encode)


@pytest.fixture(scope="module")
def decode(autoencoder):
    return jax.jit(autoencoder.decode)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_latents_see_no_later_frame(encode):
    video = normal(0, 2, 9, 16, 32, 3)
    assert encode(video).shape == (2, 3, 1, 2, 4)
    change = np.abs(encode(video.at[:, 5].add(1.0)) - encode(video)).max((0, 2, 3, 4))
    assert (change[:2] == 0).all()  # frames 0 and 1..4
    assert change[2] > 1e-3


def test_frames_see_no_later_latent(decode):
    latents = normal(1, 1, 3, 1, 2, 4)
    assert decode(latents).shape == (1, 9, 16, 32, 3)
    change = np.abs(decode(latents.at[:, 2].add(1.0)) - decode(latents)).max((0, 2, 3, 4))
    assert (change[:5] == 0).all()
    assert (change[5:] > 1e-3).all()


def test_streaming_equals_whole(autoencoder, encode, decode):
    video, latents = normal(0, 2, 9, 16, 32, 3), normal(1, 1, 3, 1, 2, 4)
    np.testing.assert_allclose(jax.jit(autoencoder.encode_streaming)(video), encode(video), atol=1e-5)
    np.testing.assert_allclose(jax.jit(autoencoder.decode_streaming)(latents), decode(latents), atol=1e-5)


def test_uneven_chunks_equal_whole(autoencoder, decode):
    latents = normal(1, 1, 3, 1, 2, 4)
    first, carry = autoencoder.decode_chunk(latents[:, :2], None)
    rest, _ = autoencoder.decode_chunk(latents[:, 2:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), decode(latents), atol=1e-5)


def test_gradients_are_finite_on_a_flat_video(autoencoder):
    graphdef, params = nnx.split(autoencoder)

    def loss(params):
        model = nnx.merge(graphdef, params)
        return jnp.abs(model.decode(model.encode(jnp.zeros((1, 5, 16, 16, 3)))) - 0.5).mean()

    norms = [float(jnp.linalg.norm(g)) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params))]
    assert np.isfinite(norms).all()
    assert max(norms) < 1e3


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_bfloat16_lowers_on_every_platform(autoencoder, platform):
    graphdef, params = nnx.split(autoencoder)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    def reconstruct(params, video):
        model = nnx.merge(graphdef, params)
        latents = model.encode(video)
        assert latents.dtype == jnp.float32
        return model.decode_streaming(latents)

    traced = jax.jit(reconstruct).trace(params, jnp.zeros((1, 9, 16, 16, 3)))
    assert traced.out_info.shape == (1, 9, 16, 16, 3)
    assert "convolution" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_causal_conv_equals_3d_convolution(frames, context):
    x, kernel = normal(0, 2, context + frames, 6, 5, 3), normal(1, 3, 3, 3, 3, 4)

    def reference(x, kernel):
        padding = ((2 - context, 0), (1, 1), (1, 1))
        return lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    expected, pullback = jax.vjp(reference, x, kernel)
    value, our_pullback = jax.vjp(lambda x, kernel: causal_conv(x, kernel, context), x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-4)
    for ours, theirs in zip(our_pullback(expected), pullback(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)


def test_upsample_conv_equals_repeat_and_convolution():
    images, kernel = normal(0, 2, 4, 5, 3), normal(1, 3, 3, 3, 6)
    enlarged = images.repeat(2, axis=1).repeat(2, axis=2)
    expected = lax.conv_general_dilated(enlarged, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(upsample_conv(images, kernel), expected, atol=1e-4)


@pytest.mark.parametrize(("time", "space"), [(1, 2), (2, 2), (1, 1)])
def test_average_down_undoes_duplicate_up(time, space):
    frames = normal(0, 1, 3, 4, 2, 8)
    up = duplicate_up(frames, 4 if space == 2 else 8, time, space, at_start=False)
    assert up.shape[1:4] == (3 * time, 4 * space, 2 * space)
    np.testing.assert_allclose(average_down(up, 8, time, space), frames, atol=1e-6)


def test_first_frame_fills_half_a_block():
    frame = jnp.ones((1, 1, 2, 2, 1))
    np.testing.assert_array_equal(average_down(frame, 8, 2, 2)[0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])


def test_patch_channels_are_colour_column_row():
    video = jnp.arange(2 * 2 * 3.0).reshape(1, 1, 2, 2, 3)  # value = 6 row + 3 column + colour
    np.testing.assert_array_equal(patchify(video, 2)[0, 0, 0, 0], [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11])
    video = normal(0, 1, 2, 8, 12, 3)
    np.testing.assert_array_equal(unpatchify(patchify(video, 4), 4), video)


def test_weights_round_trip(autoencoder):
    config, params = autoencoder.config, nnx.state(autoencoder)
    tensors = to_official(config, params)
    assert {name: tensor.shape for name, tensor in tensors.items()} == official_shapes(config)
    jax.tree.map(np.testing.assert_array_equal, from_official(config, tensors), params)


def test_wrong_weights_are_named():
    tensors = {name: np.zeros(shape, np.float32) for name, shape in official_shapes(CONFIG).items()}
    assert len(jax.tree.leaves(abstract_params(CONFIG))) == len(tensors)
    without = {name: tensor for name, tensor in tensors.items() if name != "conv1.bias"}
    with pytest.raises(InputError, match="missing.*conv1.bias"):
        from_official(CONFIG, without)
    with pytest.raises(InputError, match="unknown.*extra"):
        from_official(CONFIG, tensors | {"extra": np.zeros(1)})
    with pytest.raises(InputError, match=r"conv1.bias has shape \(3,\).*\(8,\)"):
        from_official(CONFIG, tensors | {"conv1.bias": np.zeros(3)})


@pytest.mark.parametrize("shape", [(1, 8, 16, 16, 3), (1, 5, 20, 16, 3), (1, 5, 16, 8, 3)])
def test_wrong_video_size_is_named(autoencoder, shape):
    with pytest.raises(InputError, match=r"1 \+ 4 n frames.*multiples of 16"):
        autoencoder.encode(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_downsample": (True,)}, "temporal_downsample"),
        ({"latent_std": (1.0,)}, "latent_std"),
        ({"dim_mult": (1, 2, 4)}, "no averaging shortcut"),
        ({"dim_mult": (1, 3, 3)}, "multiple of 24"),
    ],
)
def test_wrong_config_is_named(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_statistics_of_the_release_are_the_default_at_its_size():
    assert AutoencoderConfig().latent_mean[0] == -0.2289
    assert AutoencoderConfig().latent_std[-1] == 0.7744
    assert CONFIG.latent_mean == (0.0,) * 4
    assert CONFIG.latent_std == (1.0,) * 4

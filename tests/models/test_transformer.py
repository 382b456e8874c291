"""What must hold for the transformer whatever its weights are."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.rotary import rotary_table, rotate
from spatia_jax.models.transformer import TransformerConfig, VideoTransformer, init_control_from_main
from spatia_jax.models.transformer_layers import patchify, timestep_embedding, unpatchify
from spatia_jax.weights.transformer import from_official, to_official

CONFIG = TransformerConfig(
    dim=24, ffn_dim=32, num_heads=2, num_layers=4, in_dim=3, out_dim=5, text_dim=7, freq_dim=8,
    control_layers=(1, 2), control_in_dim=6,
)  # fmt: skip
K, FRAMES, ROWS, COLUMNS = 2, 5, 4, 6


@pytest.fixture(scope="module")
def fresh():
    """A transformer as training starts from it."""
    draw = jax.jit(lambda key: nnx.state(VideoTransformer(CONFIG, rngs=nnx.Rngs(key))))
    return structure(CONFIG), draw(jax.random.key(0, impl="rbg"))  # which compiles faster than the default


@pytest.fixture(scope="module")
def model(fresh):
    """A transformer without any zero left in it, so that nothing is hidden by its initialisation."""
    graphdef, params = fresh
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return graphdef, jax.tree.unflatten(treedef, leaves)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(2), 4)
    return {
        "latents": jax.random.normal(keys[0], (2, FRAMES, ROWS, COLUMNS, CONFIG.in_dim)),
        "timesteps": jnp.array([[0.0, 0.0, 0.0, 411.0, 411.0], [0.0, 0.0, 0.0, 900.5, 900.5]]),
        "context": jax.random.normal(keys[1], (2, 3, CONFIG.text_dim)),
        "control": jax.random.normal(keys[2], (2, FRAMES - K, ROWS, COLUMNS, CONFIG.control_in_dim)),
        "num_references": K,
    }


def structure(config):
    return nnx.graphdef(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0))))


@partial(jax.jit, static_argnames=("graphdef", "num_references"))
def _apply(graphdef, params, **inputs):
    return nnx.merge(graphdef, params)(**inputs)


def run(model, inputs, **changes):
    return _apply(*model, **{**inputs, **changes})


def test_jit_equals_eager(model, inputs):
    jitted = run(model, inputs)
    assert jitted.shape == (2, FRAMES, ROWS, COLUMNS, CONFIG.out_dim)
    np.testing.assert_allclose(jitted, nnx.merge(*model)(**inputs), atol=2e-5)


def test_control_scale_zero_equals_no_control(model, inputs):
    without = run(model, inputs, control=None)
    np.testing.assert_array_equal(run(model, inputs, control_scale=0.0), without)
    assert np.abs(run(model, inputs) - without).max() > 1e-2


def test_control_skip_adds_the_projection_to_the_output(model, inputs):
    skipping = structure(replace(CONFIG, control_skip=True)), model[1]
    base, added = run(model, inputs, control_scale=0.5), run(skipping, inputs, control_scale=0.5)
    np.testing.assert_array_equal(base[:, :K], added[:, :K])
    expected = 0.5 * inputs["control"][..., : CONFIG.out_dim]
    np.testing.assert_allclose(added[:, K:] - base[:, K:], expected, atol=1e-5)
    np.testing.assert_array_equal(run(skipping, inputs, control=None), run(model, inputs, control=None))


def test_samples_of_a_batch_do_not_mix(model, inputs):
    arrays = {name: x[1:] for name, x in inputs.items() if name != "num_references"}
    np.testing.assert_allclose(run(model, inputs, **arrays)[0], run(model, inputs)[1], atol=2e-5)


def test_every_frame_sees_every_other(model, inputs):
    """References inform the clip and the clip informs them: attention is neither causal nor cut."""
    base = run(model, inputs)
    for changed in (0, FRAMES - 1):
        moved = run(model, inputs, latents=inputs["latents"].at[:, changed].add(1.0))
        assert np.abs(moved - base).max(axis=(0, 2, 3, 4)).min() > 1e-4


def test_text_order_is_free_but_reference_order_is_not(model, inputs):
    """Cross-attention has no positions; references have rotary times."""
    base = run(model, inputs)
    np.testing.assert_allclose(run(model, inputs, context=inputs["context"][:, ::-1]), base, atol=2e-5)
    swapped = inputs["latents"].at[:, :K].set(inputs["latents"][:, :K][:, ::-1])
    assert np.abs(run(model, inputs, latents=swapped)[:, K:] - base[:, K:]).max() > 1e-4


def test_only_the_frames_own_timestep_modulates_it(fresh, inputs):
    """With attention silenced, a frame's output depends on no other frame's timestep."""
    graphdef, params = fresh
    params = jax.tree.map(lambda x: x + 0.1, params)
    for attention_name in ("self_attn", "cross_attn"):
        params["blocks"][attention_name] = jax.tree.map(jnp.zeros_like, params["blocks"][attention_name])
    base = run((graphdef, params), inputs, control=None)
    moved = run((graphdef, params), inputs, control=None, timesteps=inputs["timesteps"].at[:, -1].set(200.0))
    np.testing.assert_array_equal(moved[:, :-1], base[:, :-1])
    assert np.abs(moved[:, -1] - base[:, -1]).max() > 1e-5


def test_references_receive_no_hints(model, inputs):
    """A hint after the last block can reach no reference: nothing mixes tokens behind it."""
    params = jax.tree.map(lambda x: x, model[1])
    params["control"]["blocks"] = jax.tree.map(lambda x: x[:1], params["control"]["blocks"])
    last = structure(replace(CONFIG, control_layers=(3,)))
    with_hints, without = (run((last, params), inputs, control_scale=scale) for scale in (1.0, 0.0))
    np.testing.assert_array_equal(with_hints[:, :K], without[:, :K])
    assert np.abs(with_hints[:, K:] - without[:, K:]).min(axis=(2, 3)).max() > 1e-3


def test_control_branch_starts_silent_and_learns(fresh, inputs):
    graphdef, params = fresh
    params = jax.tree.map(lambda x: x, params)
    params["head"] = jax.tree.map(lambda x: x + 0.1, params["head"])
    started = init_control_from_main(params, CONFIG)
    assert jax.tree.structure(started) == jax.tree.structure(params)
    for i, layer in enumerate(CONFIG.control_layers):
        copied = jax.tree.map(lambda c, m, i=i, layer=layer: np.array_equal(c[i], m[layer]),
                              started["control"]["blocks"]["block"], started["blocks"])  # fmt: skip
        assert all(jax.tree.leaves(copied))
    silent = run((graphdef, started), inputs)
    np.testing.assert_array_equal(silent, run((graphdef, params), inputs, control=None))
    weights = jax.random.normal(jax.random.key(0), silent.shape)
    gradient = jax.grad(lambda params: jnp.vdot(weights, run((graphdef, params), inputs)))(started)
    assert np.abs(gradient["control"]["blocks"]["after_proj"]["kernel"][...]).max() > 0


def test_official_base_weights_alone_start_the_control_branch(model):
    _, params = model
    dit, _ = to_official(CONFIG, params)
    expected = init_control_from_main(params, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, from_official(CONFIG, dit), expected)


def test_wrong_weights_are_refused_by_name(model):
    dit, control = to_official(CONFIG, model[1])
    with pytest.raises(InputError, match="'blocks.0.ffn.0.bias'"):
        from_official(CONFIG, {name: x for name, x in dit.items() if name != "blocks.0.ffn.0.bias"}, control)
    with pytest.raises(InputError, match="'extra'"):
        from_official(CONFIG, dit, control | {"extra": np.zeros(1)})
    with pytest.raises(InputError, match="'head.head.bias' has shape"):
        from_official(CONFIG, dit | {"head.head.bias": np.zeros(3)}, control)


def test_new_model_predicts_zero(fresh, inputs):
    assert not np.any(run(fresh, inputs))


@pytest.mark.slow
def test_rematerialisation_changes_nothing(model, inputs):
    again = structure(replace(CONFIG, remat="block"))

    def gradient(graphdef):
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(run((graphdef, params), inputs)))))(model[1])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-2),
                 gradient(model[0]), gradient(again))  # fmt: skip


def test_bfloat16_follows_float32(model, inputs):
    half = structure(replace(CONFIG, dtype="bfloat16"))
    base, rounded = run(model, inputs), run((half, model[1]), inputs)
    assert rounded.dtype == jnp.float32
    assert 0 < np.linalg.norm(rounded - base) < 0.05 * np.linalg.norm(base)


def test_rotary_products_depend_on_distance_only():
    """q at position a against k at position b is q at a + d against k at b + d, within the clip."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    table = rotary_table(0, 4, 3, 5, 16)
    grid = np.arange(4 * 3 * 5).reshape(4, 3, 5)

    def product(a, b):
        rotated = (rotate(x, table[:, i : i + 1]) for x, i in ((q, a), (k, b)))
        return jnp.sum(next(rotated) * next(rotated))

    for a, b, shift in (((0, 0, 1), (2, 1, 3), (1, 1, 1)), ((3, 2, 0), (0, 0, 0), (0, 0, 4))):
        moved = tuple(np.add(a, shift)), tuple(np.add(b, shift))
        np.testing.assert_allclose(product(grid[a], grid[b]), product(grid[moved[0]], grid[moved[1]]), atol=1e-5)
    assert abs(product(grid[0, 0, 0], grid[0, 0, 1]) - product(grid[0, 0, 0], grid[0, 1, 0])) > 1e-3


def test_reference_positions_lie_before_the_clip_and_below_its_grid():
    """The references' angles are those of a taller grid's lower half, turned back in time."""
    references, rows, columns, head_dim = 2, 3, 4, 128
    table = rotary_table(references, 3, rows, columns, head_dim).reshape(2, 5, rows, columns, -1)
    taller = rotary_table(0, 3, 2 * rows, columns, head_dim).reshape(2, 3, 2 * rows, columns, -1)
    np.testing.assert_array_equal(table[:, references:], taller[:, :, :rows])
    time = 22  # angle pairs of the time axis
    np.testing.assert_array_equal(table[:, 0, ..., time:], taller[:, 0, rows:, :, time:])
    np.testing.assert_array_equal(table[0, 0, ..., :time], taller[0, 2, rows:, :, :time])  # cos(-2 w)
    np.testing.assert_array_equal(table[1, 0, ..., :time], -taller[1, 2, rows:, :, :time])  # sin(-2 w)


def test_timestep_embedding_is_exact_to_float32():
    timesteps = np.concatenate([np.arange(1001), np.random.default_rng(0).uniform(0, 1000, 1000)]).astype(np.float32)
    frequencies = 10_000.0 ** (-np.arange(128) / 128)
    angles = timesteps.astype(np.float64)[:, None] * frequencies
    exact = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    for embed in (timestep_embedding, jax.jit(timestep_embedding, static_argnums=1)):
        np.testing.assert_allclose(embed(timesteps, 256), exact, atol=1e-6)


def test_unpatchify_inverts_patchify():
    x = jnp.arange(2 * 3 * 4 * 6 * 5.0).reshape(2, 3, 4, 6, 5)
    patches = patchify(x, (1, 2, 2))
    assert patches.shape == (2, 3, 6, 20)
    np.testing.assert_array_equal(patches[0, 0, 1].reshape(2, 2, 5), x[0, 0, :2, 2:4])
    np.testing.assert_array_equal(unpatchify(patches, (1, 2, 2), 4, 6), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": jnp.zeros((2, FRAMES, ROWS, COLUMNS, 4))}, "4 channels"),
        ({"latents": jnp.zeros((2, FRAMES, 3, COLUMNS, 3))}, "3 x 6 positions"),
        ({"num_references": FRAMES}, "at least one"),
        ({"num_references": 0}, "no references"),
        ({"timesteps": jnp.zeros((2, 1))}, "timesteps"),
    ],
)
def test_misfitting_shapes_are_refused(model, inputs, changes, message):
    with pytest.raises(InputError, match=message):
        run(model, inputs, **changes)


@pytest.mark.parametrize(
    "changes", [{"num_heads": 5}, {"control_layers": (2, 1)}, {"control_layers": (4,)}, {"dtype": "float16"},
                {"freq_dim": 7}, {"patch_size": (2, 2, 2)}, {"control_skip": True, "control_in_dim": 4}]
)  # fmt: skip
def test_impossible_configurations_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        replace(CONFIG, **changes)

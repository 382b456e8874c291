"""LoRA as its own pytree: merging is W + scale * B A, and a new one changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.lora import TARGETS, LowRank, init_lora, merge
from spatia_jax.models.transformer import TransformerConfig, VideoTransformer
from spatia_jax.weights.lora import lora_from_official, lora_to_official
from spatia_jax.weights.transformer import to_official

CONFIG = TransformerConfig(
    dim=12, ffn_dim=20, num_heads=2, num_layers=3, in_dim=3, out_dim=3, text_dim=7, freq_dim=8,
    control_layers=(0,), control_in_dim=6,
)  # fmt: skip
RANK = 2


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: nnx.state(VideoTransformer(CONFIG, rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))))()


@pytest.fixture(scope="module")
def lora(params):
    """A LoRA whose update is not zero."""
    fresh = init_lora(params, RANK, jax.random.key(0))
    return {
        path: LowRank(factors.down, jax.random.normal(jax.random.key(i), factors.up.shape))
        for i, (path, factors) in enumerate(fresh.items())
    }


def test_new_lora_is_the_identity_and_covers_all_ten_layers(params):
    fresh = init_lora(params, RANK, jax.random.key(0))
    assert len(fresh) == 10
    assert all(np.any(factors.down) for factors in fresh.values())
    jax.tree.map(np.testing.assert_array_equal, merge(params, fresh), params)


def test_merge_adds_the_product_in_official_terms(params, lora):
    """Through both exports: official W' = W + scale * B A, in every target of every block and nowhere else."""
    scale = 0.7
    (before, control), (after, control_after) = (to_official(CONFIG, p) for p in (params, merge(params, lora, scale)))
    jax.tree.map(np.testing.assert_array_equal, control, control_after)
    factors = lora_to_official(lora)
    assert len(factors) == 2 * 10 * CONFIG.num_layers
    updated = 0
    for name in before:
        key = f"pipe.dit.{name.removesuffix('.weight')}.lora_{{}}.default.weight"
        update = 0.0
        if key.format("A") in factors:
            update, updated = scale * (factors[key.format("B")] @ factors[key.format("A")]), updated + 1
        np.testing.assert_allclose(after[name], before[name] + update, atol=1e-6, err_msg=name)
    assert updated == 10 * CONFIG.num_layers


def test_merge_leaves_the_base_alone_and_is_differentiable(params, lora):
    before = jax.tree.map(np.array, params)
    gradient = jax.jit(jax.grad(lambda lora: sum(jnp.vdot(x, x) for x in jax.tree.leaves(merge(params, lora)))))(lora)
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in jax.tree.leaves(gradient))
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.slow
def test_beside_the_kernels_it_is_what_it_is_in_them(params, lora):
    """The same output, and the same gradient of the factors."""
    small = jax.tree.map(lambda leaf: 0.1 * leaf, lora)
    rng = np.random.default_rng(0)
    latents, control = (jnp.asarray(rng.normal(size=(1, 3, 4, 4, c)), jnp.float32) for c in (3, 6))
    awake = jax.tree.map(lambda leaf: jnp.where(jnp.all(leaf == 0), 0.1, leaf), params)  # the head starts at zero
    module = nnx.graphdef(nnx.eval_shape(lambda: VideoTransformer(CONFIG, rngs=nnx.Rngs(0))))

    def square(factors, merge_lora):
        network = nnx.merge(module, awake)
        times, text = jnp.full((1, 3), 500.0), jnp.ones((1, 5, 7))
        output = network(latents, times, text, control=control, lora=factors, merge_lora=merge_lora)
        return jnp.mean(jnp.square(output))

    merged, beside = (jax.jit(jax.value_and_grad(lambda f, m=m: square(f, m)))(small) for m in (True, False))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(merged[1])) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), beside, merged)


def test_round_trip_with_either_spelling(lora):
    official = lora_to_official(lora)
    short = {name.replace(".default", ""): x for name, x in official.items()}
    for tensors in (official, short, official | {"pipe.vae.other": np.zeros(1)}):
        jax.tree.map(np.testing.assert_array_equal, lora_from_official(CONFIG, tensors), lora)


def test_targets_choose_layers(params):
    assert set(init_lora(params, RANK, jax.random.key(0), ("q", "up"))) == {"self_attn.q", "cross_attn.q", "ffn.up"}
    with pytest.raises(InputError, match="'ffn.0'"):
        init_lora(params, RANK, jax.random.key(0), (*TARGETS, "ffn.0"))


def test_wrong_files_are_refused(params, lora):
    official = lora_to_official(lora)
    with pytest.raises(InputError, match="no key"):
        lora_from_official(CONFIG, {"blocks.0.q": np.zeros(1)})
    with pytest.raises(InputError, match="covers 2 blocks"):
        lora_from_official(CONFIG, {name: x for name, x in official.items() if ".blocks.1." not in name})
    with pytest.raises(InputError, match="lora_B of ffn.up covers 0"):
        lora_from_official(CONFIG, {name: x for name, x in official.items() if "ffn.0.lora_B" not in name})
    with pytest.raises(InputError, match="unknown layer"):
        lora_from_official(CONFIG, official | {"pipe.dit.blocks.0.gate.lora_A.weight": np.zeros((2, 12))})
    with pytest.raises(InputError, match="gate"):
        merge(params, {"gate": lora["ffn.up"]})

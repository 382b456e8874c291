"""Every way to compute attention against the plain one, in value and gradient, and how a platform gets its own."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from spatia_jax.models import attention as dispatch
from spatia_jax.models.attention import attention, blockwise_attention, cudnn_takes, is_fused, reference_attention
from spatia_jax.models.tpu_attention import splash_attention


def qkv(queries: int, keys: int, heads: int, width: int, dtype=jnp.float32, large: float = 100.0):
    each = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, n, heads, width)) for key, n in zip(each, (queries, keys, keys), strict=True))
    q = q.at[0, 0].mul(large)  # logits beyond what exp can hold without the shift
    return tuple(x.astype(dtype) for x in (q, k, v))


def value_and_gradient(f, arrays):
    @jax.jit
    def run(*arrays):
        return f(*arrays), jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a).astype(jnp.float32))), (0, 1, 2))(*arrays)

    return run(*arrays)


def assert_close(f, arrays, atol: float):
    value, gradient = value_and_gradient(f, arrays)
    expected, slope = value_and_gradient(reference_attention, arrays)
    np.testing.assert_allclose(value, expected, atol=atol)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=10 * atol), gradient, slope)


def test_the_reference_is_softmax_attention():
    arrays = qkv(5, 7, 3, 8)
    value, gradient = value_and_gradient(jax.nn.dot_product_attention, arrays)
    found, slope = value_and_gradient(reference_attention, arrays)
    np.testing.assert_allclose(found, value, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), slope, gradient)


@pytest.mark.parametrize("head_by_head", [True, False])
def test_blocks_equal_the_reference(head_by_head, monkeypatch):
    monkeypatch.setattr(dispatch, "_BLOCK", 2)  # three blocks, the last one padded
    assert_close(functools.partial(blockwise_attention, head_by_head=head_by_head), qkv(5, 7, 3, 8), 2e-6)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [(150, 200), pytest.param(256, 300, marks=pytest.mark.slow), pytest.param(300, 20, marks=pytest.mark.slow)],
)
def test_the_tpu_kernel_equals_the_reference(queries, keys, monkeypatch):
    """Interpreted, in several blocks of 128, with and without padding."""
    for name in ("_QUERIES", "_KEYS", "_KEYS_AT_ONCE"):
        monkeypatch.setattr(f"spatia_jax.models.tpu_attention.{name}", 128)
    assert_close(functools.partial(splash_attention, interpret=True), qkv(queries, keys, 2, 128, large=10.0), 1e-5)


def test_a_mesh_of_tpus_gets_the_kernel_on_any_machine():
    """What runs is decided by the mesh in use, so that programs for a rented slice can be compiled here."""
    tpu = AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1,), ("data",), abstract_device=tpu)
    for width, kernel in ((128, True), (64, False)):
        arrays = [jax.ShapeDtypeStruct((1, 256, 2, width), jnp.bfloat16)] * 3
        with jax.sharding.use_abstract_mesh(mesh):
            assert (
                ("pallas_call" in str(jax.make_jaxpr(attention)(*arrays)))
                == kernel
                == is_fused("tpu", "bfloat16", width)
            )
        assert "pallas_call" not in str(jax.make_jaxpr(attention)(*arrays))


def test_where_cudnn_refuses_a_warning_says_so_once(monkeypatch):
    """There is none on this machine, so it refuses everything."""
    monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arrays = qkv(5, 7, 3, 8, jnp.bfloat16)
    cudnn_takes.cache_clear()
    with pytest.warns(UserWarning, match="cuDNN refuses attention over .*computed in blocks"):
        value = attention.__wrapped__(*arrays)
    np.testing.assert_array_equal(value, reference_attention(*arrays))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention.__wrapped__(*arrays)


def test_an_implementation_that_compiles_is_taken():
    signature = [((1, 8, 2, 16), jnp.dtype("bfloat16"))] * 3
    assert cudnn_takes(*signature, implementation="xla")

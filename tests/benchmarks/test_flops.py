"""The benchmark's count of operations against the compiler's."""

import dataclasses

import pytest

from benchmarks.transformer import flops, forward, inputs
from spatia_jax.models.transformer import TransformerConfig

# XLA counts the body of a loop once, so one block is as many as it sees.
CONFIG = TransformerConfig(
    dim=256,
    ffn_dim=1024,
    num_heads=2,
    num_layers=1,
    in_dim=16,
    out_dim=12,
    text_dim=128,
    control_in_dim=32,
    control_layers=(),
)
LATENTS, TEXT = (3, 16, 20), 40


@pytest.mark.parametrize("control_layers", [(), (0,)])
def test_flops_are_those_of_the_compiled_program(control_layers):
    config = dataclasses.replace(CONFIG, control_layers=control_layers)
    call, params = forward(config)
    counted = call.lower(params, **inputs(config, LATENTS, TEXT)).compile().cost_analysis()["flops"]
    # Norms, softmax and activations are in XLA's count and not in ours; nor is how rotary partners of queries and keys
    # come, which is 0.4 % at the released width.
    tokens = (1 + len(control_layers)) * LATENTS[0] * LATENTS[1] * LATENTS[2] // 4
    partners = 2 * tokens * 2 * config.dim * config.head_dim
    assert 1 <= (counted - partners) / flops(config, LATENTS, TEXT) < 1.02


def test_flops_of_a_block_add_up():
    main = dataclasses.replace(CONFIG, control_layers=())
    one, two, five = (flops(dataclasses.replace(main, num_layers=n), LATENTS, TEXT) for n in (1, 2, 5))
    assert five - two == 3 * (two - one)

"""UMT5 encoder weights in the layout of Wan's `models_t5_umt5-xxl-enc` to our parameters and back.

One official tensor a parameter, a layer each; ours stack the layers and keep matrices as [inputs, outputs].
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from spatia_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from spatia_jax.weights.transformer import check_tensors

_TOP: dict[tuple, str] = {
    ("embedding", "embedding"): "token_embedding.weight",
    ("norm", "scale"): "norm.weight",
}
_BLOCK: dict[tuple, str] = {
    ("norm1", "scale"): "norm1.weight",
    ("attention", "q", "kernel"): "attn.q.weight",
    ("attention", "k", "kernel"): "attn.k.weight",
    ("attention", "v", "kernel"): "attn.v.weight",
    ("attention", "o", "kernel"): "attn.o.weight",
    ("attention", "position_bias"): "pos_embedding.embedding.weight",
    ("norm2", "scale"): "norm2.weight",
    ("ffn", "gate", "kernel"): "ffn.gate.0.weight",
    ("ffn", "up", "kernel"): "ffn.fc1.weight",
    ("ffn", "down", "kernel"): "ffn.fc2.weight",
}


def from_official(config: TextEncoderConfig, tensors: dict[str, Any]) -> nnx.State:
    """Parameters of `TextEncoder(config)` from the tensors of a released file; their dtype is kept.

    Raises:
        InputError: a tensor is missing, unknown, or has another shape than `config` implies.
    """
    abstract = abstract_params(config)
    check_tensors("text encoder", tensors, jax.eval_shape(lambda params: to_official(config, params), abstract))
    loaded = []
    for path, leaf in nnx.to_flat_state(abstract):
        layers = [tensors[key].T if path[-1] == "kernel" else tensors[key] for key in _keys(path, config)]
        # Stack where the tensors live: on the host for numpy arrays, traced for tracers.
        value = layers[0].__array_namespace__().stack(layers) if path[0] == "blocks" else layers[0]
        loaded.append((path, leaf.replace(value)))
    return nnx.from_flat_state(loaded)


def to_official(config: TextEncoderConfig, params: nnx.State) -> dict[str, Any]:
    """The inverse of `from_official`, exactly."""
    tensors = {}
    for path, leaf in nnx.to_flat_state(params):
        value = leaf[...]
        layers = value if path[0] == "blocks" else [value]
        for key, layer in zip(_keys(path, config), layers, strict=True):
            tensors[key] = layer.T if path[-1] == "kernel" else layer
    return tensors


def abstract_params(config: TextEncoderConfig) -> nnx.State:
    """Shapes and dtypes of the parameters; nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: TextEncoder(config, rngs=nnx.Rngs(0))))[1]


def _keys(path: tuple, config: TextEncoderConfig) -> list[str]:
    """Official names of one of our parameters: one, or one a layer."""
    if path[0] != "blocks":
        return [_TOP[path]]
    return [f"blocks.{i}.{_BLOCK[path[1:]]}" for i in range(config.num_layers)]

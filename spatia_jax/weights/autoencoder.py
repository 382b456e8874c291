"""Official tensors of the Wan2.2 autoencoder <-> our parameters, one to one, both ways.

Official convolutions are [out, in, time, row, column], ours [time, row, column, in, out] without the axes of length 1;
official norm scales are [c, 1, 1(, 1)], ours [c].
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.autoencoder import Autoencoder, AutoencoderConfig

Tensors = dict[str, Any]

_ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
_MIDDLE = {"before": "middle.0", "attention": "middle.1", "after": "middle.2"}
_LAYERS = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "shortcut": "shortcut",
    "norm": "norm",
    "qkv": "to_qkv",
    "out": "proj",
    "conv": "resample.1",
    "time_conv": "time_conv",
}
_LEAVES = {"kernel": "weight", "bias": "bias", "scale": "gamma"}


def abstract_params(config: AutoencoderConfig) -> nnx.State:
    """Shapes and dtypes of all parameters, without memory."""
    return jax.eval_shape(lambda: nnx.state(Autoencoder(config, rngs=nnx.Rngs(0))))


def official_shapes(config: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every official tensor of this size."""
    flat = nnx.to_flat_state(abstract_params(config))
    return {_official_name(config, path): _official_shape(path, param.shape) for path, param in flat}


def from_official(config: AutoencoderConfig, tensors: Tensors) -> nnx.State:
    """Parameters of `Autoencoder(config)` from official tensors; dtypes and the place they live in are kept.

    Raises:
        InputError: a tensor is missing, unknown, or has another shape than the configuration says.
    """
    expected = official_shapes(config)
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(f"{len(missing)} tensors are missing, first {missing[0]!r}; are these weights of this size?")
    if unknown := sorted(set(tensors) - set(expected)):
        raise InputError(f"{len(unknown)} tensors are unknown, first {unknown[0]!r}; does num_res_blocks fit the file?")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"{name} has shape {tuple(tensors[name].shape)}; the configuration asks for {shape}")
    return nnx.from_flat_state(
        [
            (path, param.replace(_our_layout(tensors[_official_name(config, path)], param.shape)))
            for path, param in nnx.to_flat_state(abstract_params(config))
        ]
    )


def to_official(config: AutoencoderConfig, params: nnx.State) -> Tensors:
    """Official tensors of our parameters: the inverse of `from_official`."""
    return {
        _official_name(config, path): _official_layout(path, param[...]) for path, param in nnx.to_flat_state(params)
    }


def _official_name(config: AutoencoderConfig, path: tuple) -> str:
    match path:
        case ("to_moments", leaf):
            return f"conv1.{_LEAVES[leaf]}"
        case ("from_latents", leaf):
            return f"conv2.{_LEAVES[leaf]}"
        case (side, end, leaf):
            return f"{side}.{_ENDS[end]}.{_LEAVES[leaf]}"
        case (side, "middle", block, layer, leaf):
            return f"{side}.{_MIDDLE[block]}.{_LAYERS[layer]}.{_LEAVES[leaf]}"
        case (side, "stages", stage, "blocks", block, layer, leaf):
            pass
        case (side, "stages", stage, "resample", layer, leaf):  # stands behind the blocks in the same list
            block = config.num_res_blocks + (1 if side == "decoder" else 0)
    samples = "downsamples" if side == "encoder" else "upsamples"
    return f"{side}.{samples}.{stage}.{samples}.{block}.{_LAYERS[layer]}.{_LEAVES[leaf]}"


def _official_shape(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    *_, layer, leaf = path
    if leaf == "bias":
        return shape
    if leaf == "scale":
        return (*shape, 1, 1) if layer == "norm" else (*shape, 1, 1, 1)
    *taps, inputs, outputs = shape
    per_image = layer in ("qkv", "out", "conv")
    return (outputs, inputs, *taps, *(1,) * ((2 if per_image else 3) - len(taps)))


def _our_layout(tensor, shape: tuple[int, ...]):
    return tensor.transpose(*range(2, tensor.ndim), 1, 0).reshape(shape) if len(shape) > 1 else tensor.reshape(shape)


def _official_layout(path: tuple, value):
    last = value.ndim - 1
    ordered = value.transpose(last, last - 1, *range(last - 1)) if last else value
    return ordered.reshape(_official_shape(path, value.shape))

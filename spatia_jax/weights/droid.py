"""DROID-SLAM's released weights (`droid.pth`) to our parameters and back, one tensor to one parameter.

Official names carry the prefix "module."; convolutions are [out, in, row, column], ours [row, column, in, out], and 1 x
1 convolutions of a single vector are plain matrices. The released last layers of the heads `delta` and `weight` have
more output rows than are used: the first two count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.droid import DroidConfig, DroidNetwork
from spatia_jax.weights.checkpoints import open_checkpoint
from spatia_jax.weights.names import recognise

_PREFIX = "module."
_UPDATE = {
    "corr1": "corr_encoder.0",
    "corr2": "corr_encoder.2",
    "flow1": "flow_encoder.0",
    "flow2": "flow_encoder.2",
    "delta1": "delta.0",
    "delta2": "delta.2",
    "weight1": "weight.0",
    "weight2": "weight.2",
    "agg1": "agg.conv1",
    "agg2": "agg.conv2",
    "eta": "agg.eta.0",
    "upmask": "agg.upmask.0",
}
_GRU = {f"conv{gate}": f"conv{gate}" for gate in "zrq"} | {f"global{gate}": f"conv{gate}_glo" for gate in "zrq"}
_GRU["attend"] = "w"
_HEADS = ("update.delta.2", "update.weight.2")  # with surplus rows


def abstract_params(config: DroidConfig) -> nnx.State:
    """Shapes and types of the parameters; nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: DroidNetwork(config, rngs=nnx.Rngs(0))))[1]


def build(config: DroidConfig, params: nnx.State) -> DroidNetwork:
    """The network with these parameters."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: DroidNetwork(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def official_shapes(config: DroidConfig) -> dict[str, tuple[int, ...]]:
    """Name (without prefix) and shape of every tensor, the heads without their surplus rows."""
    return {_official_name(path): _official_shape(path, leaf.shape) for path, leaf in _flat(abstract_params(config))}


def read_droid(path: str | Path, config: DroidConfig) -> nnx.State:
    """Parameters of `DroidNetwork(config)` from a `droid.pth` (or a safetensors file of the same tensors).

    Raises:
        InputError: not such a file, or of another size; a pickle that asks for anything but tensors is refused.
    """
    checkpoint = open_checkpoint(path)
    if naming := recognise(checkpoint):
        raise InputError(f"{path}: holds the {naming.slot}, not the weights of DROID-SLAM (droid.pth)")
    try:
        return from_official(config, checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def from_official(config: DroidConfig, tensors: Mapping[str, np.ndarray]) -> nnx.State:
    """Parameters from tensors by official name, with or without the prefix.

    Raises:
        InputError: a tensor is missing, unknown, or has another shape than the config implies.
    """
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    expected = official_shapes(config)
    if not {"update.gru.convz.weight", "fnet.conv1.weight"} <= set(tensors):
        raise InputError("these are not the weights of DROID-SLAM: no update.gru or no fnet in it")
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(f"{len(missing)} tensors of DROID-SLAM are missing, first {missing[0]!r}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise InputError(f"{len(unknown)} tensors are not of DROID-SLAM, first {unknown[0]!r}")
    for name, shape in expected.items():
        found = tuple(tensors[name].shape)
        surplus = name.startswith(_HEADS) and found[1:] == shape[1:] and found[0] > shape[0]
        if found != shape and not surplus:
            raise InputError(f"{name} has shape {found}; DROID-SLAM of this config has {shape}")

    def ours(path: tuple, leaf):
        name = _official_name(path)
        tensor = np.asarray(tensors[name][: expected[name][0]], np.float32)
        return leaf.replace(np.ascontiguousarray(tensor.transpose(*range(2, tensor.ndim), *_swap(tensor.ndim)))
                            .reshape(leaf.shape))  # fmt: skip

    return nnx.from_flat_state([(path, ours(path, leaf)) for path, leaf in _flat(abstract_params(config))])


def to_official(config: DroidConfig, params: nnx.State) -> dict[str, np.ndarray]:
    """The inverse of `from_official`, with the prefix and without surplus rows."""

    def official(path: tuple, leaf) -> np.ndarray:
        value = np.asarray(leaf[...])
        last = value.ndim - 1
        ordered = value.transpose(last, last - 1, *range(last - 1)) if last else value
        return np.ascontiguousarray(ordered.reshape(_official_shape(path, value.shape)))

    return {_PREFIX + _official_name(path): official(path, leaf) for path, leaf in _flat(params)}


def _flat(params: nnx.State) -> list:
    return list(nnx.to_flat_state(params))


def _swap(ndim: int) -> tuple[int, ...]:
    return (1, 0) if ndim > 1 else (0,)


def _official_name(path: tuple) -> str:
    end = {"kernel": "weight", "bias": "bias"}[path[-1]]
    match path[:-1]:
        case ("update", "gru", layer):
            return f"update.gru.{_GRU[layer]}.{end}"
        case ("update", layer):
            return f"update.{_UPDATE[layer]}.{end}"
        case (net, block, "downsample"):
            return f"{net}.{block.replace('_', '.')}.downsample.0.{end}"
        case (net, block, layer):
            return f"{net}.{block.replace('_', '.')}.{layer}.{end}"
        case (net, layer):
            return f"{net}.{layer}.{end}"
    raise ValueError(path)


def _official_shape(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] == "bias":
        return shape
    *taps, inputs, outputs = shape
    return (outputs, inputs, *(taps or (1, 1)))

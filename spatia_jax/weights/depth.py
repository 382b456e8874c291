"""Depth-Anything-V2 weights (the Hugging Face layout of `DepthAnythingForDepthEstimation`) to our parameters and back.

Every parameter of ours comes from exactly one official tensor. The released files hold two things that the forward pass
never reads, `backbone.embeddings.mask_token` and the skip unit of the deepest fusion layer; the import ignores
them and the export leaves them out.
"""

from __future__ import annotations

import numpy as np
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.depth import DepthConfig, DepthNetwork
from spatia_jax.models.depth_head import SCALES

_EMBEDDINGS = "backbone.embeddings"
_POSITIONS = f"{_EMBEDDINGS}.position_embeddings"
_NORM = "backbone.layernorm"
UNREAD = (f"{_EMBEDDINGS}.mask_token", "neck.fusion_stage.layers.0.residual_layer1.")

_BLOCK = {
    "norm1": "norm1",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "output": "attention.output.dense",
    "norm2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "scale1": "layer_scale1.lambda1",
    "scale2": "layer_scale2.lambda1",
}
_FUSE = {
    "project": "projection",
    "skip.conv1": "residual_layer1.convolution1",
    "skip.conv2": "residual_layer1.convolution2",
    "refine.conv1": "residual_layer2.convolution1",
    "refine.conv2": "residual_layer2.convolution2",
}


def from_official(config: DepthConfig, tensors: dict[str, np.ndarray]) -> nnx.State:
    """Parameters of `DepthNetwork(config)` from the tensors of a released file.

    Raises:
        InputError: when a tensor is missing, is not known, or has another shape than `config` implies.
    """
    graph = abstract_params(config)
    used = {_POSITIONS, f"{_EMBEDDINGS}.cls_token"}
    loaded = []
    for path, leaf in nnx.to_flat_state(graph):
        value = _read(config, path, leaf.shape, tensors, used)
        if value.shape != leaf.shape:
            raise InputError(
                f"depth weights: {'.'.join(map(str, path))} has shape {value.shape}, the config asks for {leaf.shape}"
            )
        loaded.append((path, leaf.replace(np.ascontiguousarray(value, np.float32))))
    unknown = [key for key in tensors if key not in used and not key.startswith(UNREAD)]
    if unknown:
        raise InputError(
            f"depth weights: {len(unknown)} tensors are not part of this config, the first is {unknown[0]}"
        )
    return nnx.from_flat_state(loaded)


def to_official(config: DepthConfig, params: nnx.State) -> dict[str, np.ndarray]:
    """The inverse of `from_official`, without the tensors that no forward pass reads."""
    tensors: dict[str, np.ndarray] = {}
    flat = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
    for path, value in flat.items():
        if path[1] in ("positions", "class_position", "class_token"):
            continue
        key, layout = _official(path)
        if "{layer}" in key:
            tensors |= {key.format(layer=i): _to_torch(one, layout, config) for i, one in enumerate(value)}
        else:
            tensors[key] = _to_torch(value, layout, config)
    grid = flat["backbone", "positions"].reshape(-1, config.dim)
    tensors[_POSITIONS] = np.concatenate([flat["backbone", "class_position"][None], grid])[None]
    tensors[f"{_EMBEDDINGS}.cls_token"] = flat["backbone", "class_token"][None, None]
    return tensors


def abstract_params(config: DepthConfig) -> nnx.State:
    """Shapes and types of the parameters; nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: DepthNetwork(config, rngs=nnx.Rngs(0))))[1]


def _read(config: DepthConfig, path: tuple, shape: tuple, tensors: dict, used: set[str]) -> np.ndarray:
    def get(key: str) -> np.ndarray:
        if key not in tensors:
            raise InputError(f"depth weights: tensor {key} is missing (expected a Depth-Anything-V2 file)")
        used.add(key)
        return np.asarray(tensors[key], np.float32)

    match path[1]:
        case "class_token":
            return get(f"{_EMBEDDINGS}.cls_token")[0, 0]
        case "class_position":
            return get(_POSITIONS)[0, 0]
        case "positions":
            grid = get(_POSITIONS)[0, 1:]
            if len(grid) != shape[0] * shape[1]:
                raise InputError(f"depth weights: {len(grid)} position embeddings, the config asks for {shape[:2]}")
            return grid.reshape(shape)
    key, layout = _official(path)
    if "{layer}" in key:
        layers = [_from_torch(get(key.format(layer=i)), layout, config) for i in range(config.num_layers)]
        return np.stack(layers)
    return _from_torch(get(key), layout, config)


def _official(path: tuple) -> tuple[str, str]:
    """(official key, layout) of one of our parameters; stacked ones have `{layer}` in the key."""
    *modules, leaf = path
    if leaf in ("scale1", "scale2"):
        return f"backbone.encoder.layer.{{layer}}.{_BLOCK[leaf]}", "same"
    key, layout = _official_module(modules)
    return (f"{key}.bias", "same") if leaf == "bias" else (f"{key}.weight", "same" if leaf == "scale" else layout)


def _official_module(modules: list[str]) -> tuple[str, str]:
    """(official module, layout of its kernel) of one of our layers."""
    root, module, *rest = modules
    part = ".".join(rest)
    if root == "backbone":
        if module == "blocks":
            return f"backbone.encoder.layer.{{layer}}.{_BLOCK[part]}", "dense"
        return {"patches": (f"{_EMBEDDINGS}.patch_embeddings.projection", "patches"), "norm": (_NORM, "same")}[module]
    if module.startswith("reassemble"):
        level = int(module.removeprefix("reassemble"))
        if part == "conv":
            return f"neck.convs.{level}", "conv"
        if part == "project":
            return f"neck.reassemble_stage.layers.{level}.projection", "pointwise"
        return f"neck.reassemble_stage.layers.{level}.resize", "transposed" if SCALES[level] > 1 else "conv"
    if module.startswith("fuse"):
        layer = len(SCALES) - 1 - int(module.removeprefix("fuse"))  # the official list starts at the deepest
        return f"neck.fusion_stage.layers.{layer}.{_FUSE[part]}", "pointwise" if part == "project" else "conv"
    return f"head.{module}", "pointwise" if module == "conv3" else "conv"


def _from_torch(tensor: np.ndarray, layout: str, config: DepthConfig) -> np.ndarray:
    match layout:
        case "dense":
            return tensor.T
        case "pointwise":
            return tensor[:, :, 0, 0].T
        case "conv":
            return tensor.transpose(2, 3, 1, 0)
        case "transposed":
            return tensor.transpose(2, 3, 0, 1)
        case "patches":
            return tensor.transpose(2, 3, 1, 0).reshape(-1, config.dim)
    return tensor


def _to_torch(array: np.ndarray, layout: str, config: DepthConfig) -> np.ndarray:
    match layout:
        case "dense":
            array = array.T
        case "pointwise":
            array = array.T[:, :, None, None]
        case "conv":
            array = array.transpose(3, 2, 0, 1)
        case "transposed":
            array = array.transpose(2, 3, 0, 1)
        case "patches":
            array = array.reshape(config.patch_size, config.patch_size, 3, config.dim).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(array)

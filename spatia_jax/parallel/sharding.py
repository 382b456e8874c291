"""One table from parameter paths to mesh axes: for parameters, EMA, optimizer state, LoRA and checkpoints alike.

Matrices whose output is heads or hidden units are cut along it over `tensor`, and those that lead back along their
input, so that a pair of them needs one sum over devices (Megatron-LM, arXiv 1909.08053). `fsdp` cuts the other side:
it saves memory, and XLA gathers what a layer needs. `slices`, `data` and `context` never cut parameters.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spatia_jax.errors import InputError
from spatia_jax.parallel.checks import AXES, BATCH_AXES, check_batch, check_devices

_Axes = tuple[str, ...]

# What a layer is called, and the axes of its kernel's inputs and outputs; the first that matches counts.
_LAYERS: tuple[tuple[str, _Axes, _Axes], ...] = (
    (r"(attn|attention)\.[qkv]", ("fsdp",), ("tensor",)),
    (r"(attn|attention)\.o", ("tensor",), ("fsdp",)),
    (r"(ffn|text_embedding|time_embedding)\.(up|gate)", ("fsdp",), ("tensor",)),
    (r"(ffn|text_embedding|time_embedding)\.down", ("tensor",), ("fsdp",)),
    (r".*", (), ("fsdp",)),
)
# Other arrays of more than one axis, by the end of their path: the axes of their last two dimensions.
_TABLES: tuple[tuple[str, _Axes, _Axes], ...] = (
    (r"embedding\.embedding", ("tensor", "fsdp"), ()),  # rows are the vocabulary
    (r"(attn|attention)\.position_bias", (), ("tensor",)),  # columns are heads
)


@dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis of the mesh.

    Attributes:
        data: parts of the batch; every part has all parameters.
        fsdp: parts of the parameters that a device gathers before it uses them; the batch is cut along it too.
        context: parts of the tokens, and of the autoencoder's frames.
        tensor: parts of heads and hidden units.
        slices: groups of devices with a slow network between them (TPU slices over DCN, pods of hosts); like `data`,
            so that only gradients cross it.

    Raises:
        InputError: a size below 1.
    """

    data: int = 1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 1

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            if size < 1:
                raise InputError(f"mesh.{name} is {size}; it must be at least 1")

    @property
    def sizes(self) -> dict[str, int]:
        """Of the axes, in the order in which the mesh has them."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `slices`, `data`, `fsdp`, `context`, `tensor`, the last over the nearest devices.

    Args:
        config: sizes of the axes; their product is the number of devices.
        devices: all of JAX's by default.

    Raises:
        InputError: the product differs from the number of devices, or these lie in another number of TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    check_devices(config.sizes, len(devices))
    # Devices of a TPU say their slice. Elsewhere processes are hosts, and a slice is some of them, in their order.
    found = {getattr(device, "slice_index", 0) for device in devices}
    if len(found) > 1 and len(found) != config.slices:
        raise InputError(f"mesh.slices is {config.slices}; the devices lie in {len(found)} slices, so it must be that")
    ordered = sorted(devices, key=lambda d: (getattr(d, "slice_index", 0), d.process_index))
    shape = tuple(config.sizes.values())
    groups = np.split(np.array(ordered), config.slices)
    within = [jax.make_mesh(shape[1:], AXES[1:], devices=tuple(group)).devices for group in groups]
    return Mesh(np.stack(within), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_specs(abstract_params: Any, config: MeshConfig) -> Any:
    """A PartitionSpec for each array, with one entry for each of its axes.

    An axis of the mesh that does not divide an axis of the array is left out; so are axes of size 1. Leading axes
    (stacked layers, a convolution's window) are never cut, and vectors lie on every device.

    Args:
        abstract_params: any pytree of arrays or ShapeDtypeStructs whose paths end like those of our parameters.
        config: sizes of the mesh's axes.
    """
    several = {name: size for name, size in config.sizes.items() if size > 1}

    def spec(path: tuple, leaf: Any) -> PartitionSpec:
        inputs, outputs = _matrix_axes(jax.tree_util.keystr(path, simple=True, separator="."))
        if leaf.ndim < 2:
            return PartitionSpec(*[None] * leaf.ndim)
        kept = (dividing(*each, several) for each in zip((inputs, outputs), leaf.shape[-2:], strict=True))
        last = (axes[0] if len(axes) == 1 else axes or None for axes in kept)
        return PartitionSpec(*[None] * (leaf.ndim - 2), *last)

    return jax.tree_util.tree_map_with_path(spec, abstract_params)


def param_shardings(abstract_params: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each array, from `param_specs`; `mesh` is one of `make_mesh`."""
    specs = param_specs(abstract_params, MeshConfig(**mesh.shape))
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each array of a train state, for `jit`, `device_put` and checkpoints alike.

    Every copy of a parameter (moving average, moments of the optimizer, accumulated gradients, a LoRA and its own)
    lies as the parameter itself, since their paths end alike; steps, counts and random keys are on every device.

    Args:
        abstract_state: a pytree of arrays or ShapeDtypeStructs, as of `jax.eval_shape`.
        mesh: one of `make_mesh`.
    """
    return param_shardings(abstract_state, mesh)


def batch_shardings(abstract_batch: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each array of a batch: its leading axis over `slices`, `data` and `fsdp`, the rest whole.

    Args:
        abstract_batch: a pytree of arrays or ShapeDtypeStructs [b, ...], b the batch of all hosts together.
        mesh: one of `make_mesh`.

    Raises:
        InputError: the batch does not divide.
    """
    for leaf in jax.tree.leaves(abstract_batch):
        check_batch(leaf.shape[0], mesh.shape)
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(BATCH_AXES)), abstract_batch)


def _matrix_axes(path: str) -> tuple[_Axes, _Axes]:
    """The axes of the mesh for the last two axes of the array at `path`."""
    layer, _, name = path.removesuffix(".value").rpartition(".")  # nnx.State has its arrays at `.value`
    if name in ("kernel", "down", "up"):
        inputs, outputs = next((i, o) for pattern, i, o in _LAYERS if re.search(rf"{pattern}$", layer))
        # The factors of a LoRA, [in, rank] and [rank, out], lie as the kernel that they update.
        return (() if name == "up" else inputs), (() if name == "down" else outputs)
    return next(((i, o) for pattern, i, o in _TABLES if re.search(rf"{pattern}$", f"{layer}.{name}")), ((), ()))


def dividing(axes: _Axes, length: int, sizes: Mapping[str, int]) -> _Axes:
    """As many of `axes`, in order, as the mesh has and divide `length` together."""
    kept: _Axes = ()
    for axis in axes:
        if axis in sizes and length % math.prod(sizes[name] for name in (*kept, axis)) == 0:
            kept = (*kept, axis)
    return kept

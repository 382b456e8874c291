"""What a program asks of the mesh in use (`jax.set_mesh`) while it is traced; without one it runs on one device.

No model has a mesh as an argument: the same functions run on a laptop, on a pod, and are compiled here for one.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from spatia_jax.parallel.checks import BATCH_AXES
from spatia_jax.parallel.sharding import dividing


def axis_sizes() -> dict[str, int]:
    """Name and size of each axis of the mesh in use; empty without one."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def platform() -> str:
    """What the program will run on: "tpu", "gpu" or "cpu".

    The mesh's devices count, so that a program traced under a mesh of a TPU topology is a TPU's on any machine.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_axes(size: int) -> tuple[str, ...]:
    """The axes of the mesh in use that divide a batch of `size`: an entry of a PartitionSpec."""
    return dividing(BATCH_AXES, size, axis_sizes())


def spread_examples(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """For use under jit: examples over the mesh in use, as far as they divide, and otherwise whole on every device.

    Says to XLA that what is cut along `fsdp` beside the batch, the parameters, is to be gathered, not the batch.
    """
    return jax.lax.with_sharding_constraint(x, PartitionSpec(batch_axes(len(x)))) if axis_sizes() else x


def on_every_device(tree: Any) -> Any:
    """For use under jit: the same arrays, whole on every device of the mesh in use (`jax.set_mesh`), if any."""
    return tree if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(tree, PartitionSpec())


def split_frames(frames: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """For use under jit: columns or else rows, whichever divide, over the axis `context` of the mesh in use, if any.

    Examples stay over the other axes.
    """
    size = axis_sizes().get("context", 1)
    axis = next((axis for axis in (3, 2) if frames.shape[axis] % size == 0), None)
    if size == 1 or axis is None:
        return frames
    rest = [None] * (axis - 1)
    return jax.lax.with_sharding_constraint(frames, PartitionSpec(batch_axes(len(frames)), *rest, "context"))

"""What can be wrong with a mesh, found before anything is loaded or compiled; each error names the allowed values."""

from __future__ import annotations

import math
from collections.abc import Mapping

from spatia_jax.errors import InputError

AXES = ("slices", "data", "fsdp", "context", "tensor")  # of every mesh, the last over the nearest devices
BATCH_AXES = ("slices", "data", "fsdp")  # that a batch is cut along


def check_mesh(
    sizes: Mapping[str, int], *, devices: int, heads: int, sequence_parallel: str, batch_size: int | None = None
) -> None:
    """Nothing, if a program can run on such a mesh.

    Args:
        sizes: of its axes (`MeshConfig.sizes`, `Mesh.shape`).
        devices: that there are.
        heads, sequence_parallel: of the transformer.
        batch_size: examples of a training step, of all hosts together.

    Raises:
        InputError: it cannot.
    """
    check_devices(sizes, devices)
    check_heads(heads, sizes["context"] if sequence_parallel == "ulysses" else 1, sizes["tensor"])
    if batch_size is not None:
        check_batch(batch_size, sizes)


def check_devices(sizes: Mapping[str, int], devices: int) -> None:
    """Nothing, if the mesh has as many devices as there are, else InputError."""
    if (count := math.prod(sizes.values())) != devices:
        shown = " x ".join(f"{name} {size}" for name, size in sizes.items() if name != "slices" or size > 1)
        raise InputError(f"mesh: {shown} is {count} devices; there are {devices}, which the axes' product must be")


def check_heads(heads: int, context: int, tensor: int) -> None:
    """Nothing, if every device can have whole heads, of all tokens (`context` of "ulysses"), else InputError."""
    if heads % tensor:
        raise InputError(
            f"mesh.tensor is {tensor}, which does not divide {heads} heads; it must be one of {_divisors(heads)}"
        )
    if heads // tensor % context:
        raise InputError(
            f"mesh.context is {context}, which does not divide the {heads // tensor} heads of a device; with "
            f"sequence_parallel ulysses it must be one of {_divisors(heads // tensor)}, with ring any number will do"
        )


def check_batch(size: int, sizes: Mapping[str, int]) -> None:
    """Nothing, if every part of the mesh gets as many examples, else InputError."""
    parts = math.prod(sizes[axis] for axis in BATCH_AXES)
    if size % parts:
        shown = " x ".join(f"{axis} {sizes[axis]}" for axis in BATCH_AXES)
        raise InputError(f"a batch of {size} cannot be split over mesh {shown}; it must be a multiple of {parts}")


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)

"""Compiled programs as files: compiled once, anywhere, and loaded on the devices that they were compiled for.

A file belongs to one version of JAX, to devices of one kind and number in one order, to a mesh, to the experiment and
to the shapes of its arguments; its header says which. It holds no parameters. Loading it runs what is in it: load only
files that you made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from spatia_jax.config import Experiment
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write

_MAGIC = b"spatia-executable\n"


def save_executable(path: Path, compiled: jax.stages.Compiled, config: Experiment, axes: Mapping[str, int]) -> None:
    """Writes a compiled program.

    Args:
        config, axes: experiment and mesh (name and size of its axes; none on one device) that it was compiled with.

    Raises:
        InputError: this platform's programs cannot be saved.
    """
    try:
        payload, _, _ = serialize_executable.serialize(compiled)
    # ValueError: JAX kept nothing that could be saved. RuntimeError: arrays that the program closes over became hidden
    # arguments, which JAX does not save; or the platform's compiler cannot write its programs down.
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: this program cannot be saved ({_first_line(error)})") from None
    devices = jax.tree.leaves(compiled.input_shardings)[0].device_set
    header = _made_for(compiled.args_info, config, axes, next(iter(devices)))
    with atomic_write(path) as temporary:
        temporary.write_bytes(_MAGIC + json.dumps(header).encode() + b"\n" + payload)


def load_executable(
    path: Path, function: Callable, arguments: tuple[Any, ...], config: Experiment, mesh: Mesh | None
) -> jax.stages.Compiled:
    """The compiled form of `function` from a file, ready to be called with arrays as `arguments`.

    Args:
        function: what was compiled; gives the structure of the result, and is traced, but not compiled.
        arguments: arrays, or their shapes.
        config, mesh: as it was compiled with; a mesh of None is the first device alone.

    Raises:
        InputError: no such file, or one made by another JAX, for other devices, or of another program.
    """
    devices = tuple(jax.devices()[:1] if mesh is None else mesh.devices.flat)
    axes = {} if mesh is None else dict(mesh.shape)
    content = path.read_bytes() if path.is_file() else b""
    if not content.startswith(_MAGIC):
        raise InputError(f"{path}: no executable is there; --save of spatia_jax.parallel.aot writes one")
    header, _, payload = content[len(_MAGIC) :].partition(b"\n")
    made, here = json.loads(header), _made_for(arguments, config, axes, devices[0])
    if different := [f"{name} {made.get(name)}, here {here[name]}" for name in here if made.get(name) != here[name]]:
        raise InputError(f"{path} was made for something else: {'; '.join(different)}")
    structure: Any = jax.tree.structure((arguments, {}))
    result: Any = jax.tree.structure(jax.eval_shape(function, *arguments))
    try:
        return serialize_executable.deserialize_and_load(
            payload, structure, result, backend=devices[0].client, execution_devices=devices
        )
    except jax.errors.JaxRuntimeError as error:  # e.g. of another build of the compiler
        raise InputError(f"{path} cannot be loaded here ({_first_line(error)})") from None


def _made_for(arguments: Any, config: Experiment, axes: Mapping[str, int], device: jax.Device) -> dict[str, str]:
    """What has to be equal where a program is loaded."""
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments)]
    return {
        "jax": jax.__version__,
        "platform": device.platform,
        "device_kind": device.device_kind,
        "mesh": " x ".join(f"{name} {size}" for name, size in axes.items() if size > 1) or "one device",
        "config": config.sampling_fingerprint(),
        "arguments": f"{len(shapes)} of {hashlib.sha256(str(shapes).encode()).hexdigest()[:8]}",
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

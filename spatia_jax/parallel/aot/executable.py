"""Compiled programs as files: compiled once, anywhere, and loaded on the devices that they were compiled for.

A file belongs to one version of JAX and of the compiler, and to devices of one kind and number, in one order. It holds
no parameters. Loading it runs what is in it: load only files that you made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.parallel.aot.programs import Program

_MAGIC = b"spatia-executable\n"


def save_executable(path: Path, compiled: jax.stages.Compiled) -> None:
    """Writes a compiled program.

    Raises:
        InputError: this platform's programs cannot be saved.
    """
    try:
        payload, _, _ = serialize_executable.serialize(compiled)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise InputError(f"{path}: this program cannot be saved ({str(error).splitlines()[0]})") from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(_MAGIC + json.dumps(_made_by(compiled)).encode() + b"\n" + payload)


def load_executable(path: Path, program: Program, devices: Sequence[jax.Device] | None = None) -> jax.stages.Compiled:
    """The compiled form of `program` from a file, ready to be called with arrays on `devices` (default: all of them).

    Args:
        program: what was compiled; gives the structure of arguments and result, and is not compiled.

    Raises:
        InputError: no such file, or one made by another JAX, for other devices, or of another program.
    """
    devices = tuple(jax.devices() if devices is None else devices)
    content = path.read_bytes() if path.is_file() else b""
    if not content.startswith(_MAGIC):
        raise InputError(f"{path}: no executable is there; --save of spatia_jax.parallel.aot writes one")
    header, _, payload = content[len(_MAGIC) :].partition(b"\n")
    made, here = json.loads(header), _versions(devices[0].platform, devices[0].device_kind, len(devices))
    trees: tuple[Any, Any] = jax.tree.structure((program.arguments, {})), jax.tree.structure(_result(program))
    given = {**here, "arguments": trees[0].num_leaves, "results": trees[1].num_leaves}
    if different := [f"{name} {made[name]}, here {given[name]}" for name in made if made[name] != given[name]]:
        raise InputError(f"{path} was made for something else: {'; '.join(different)}; compile it again")
    return serialize_executable.deserialize_and_load(
        payload, *trees, backend=devices[0].client, execution_devices=devices
    )


def _result(program: Program) -> Any:
    return jax.eval_shape(program.function, *program.arguments)


def _made_by(compiled: jax.stages.Compiled) -> dict[str, Any]:
    sharding = jax.tree.leaves(compiled.input_shardings)[0]
    devices = list(sharding.device_set)
    trees: Any = compiled.in_tree, compiled.out_tree
    counts = {"arguments": trees[0].num_leaves, "results": trees[1].num_leaves}
    return _versions(devices[0].platform, devices[0].device_kind, len(devices)) | counts


def _versions(platform: str, kind: str, count: int) -> dict[str, Any]:
    return {"jax": jax.__version__, "platform": platform, "device_kind": kind, "devices": count}

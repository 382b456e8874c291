"""The pieces of a clip as executables in a folder: loaded where they are there, otherwise compiled and kept.

A clip has three pieces, and opening and continuing clips are compiled apart: `before-opening`, `step-continuing` and so
on. `step-continuing` is what `python -m spatia_jax.parallel.aot CONFIG --program sample --save FILE` writes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from spatia_jax.errors import InputError
from spatia_jax.model import Model, Params
from spatia_jax.parallel import replicated
from spatia_jax.parallel.aot.executable import load_executable, save_executable


@contextlib.contextmanager
def _really_compiling() -> Iterator[None]:
    """Without JAX's own cache: on CPU, a program that comes from there lacks parts when it is saved (jax 0.10.2)."""
    used = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", used)
        compilation_cache.reset_cache()


@dataclass(frozen=True)
class Executables:
    """Those of one folder, for one model.

    Attributes:
        folder: gets the files.
        mesh: in use, None on one device.
        say: where it is said what was loaded and what was compiled.
    """

    folder: Path
    model: Model
    mesh: Mesh | None = None
    say: Callable[[str], None] = print
    _ready: dict[str, jax.stages.Compiled] = field(default_factory=dict)

    def __call__(self, name: str, piece: Any, params: Params, given: tuple[Any, ...], **static: Any) -> Any:
        """`piece(model, params, *given, **static)`, of which `static` and the model were there when it was compiled."""
        if self.mesh is not None:  # as on the way out of every piece, and as `aot` compiles it
            given = jax.device_put(given, replicated(self.mesh))
        if name not in self._ready:
            self._ready[name] = self._open(self.folder / name, piece, (params, *given), static)
        return self._ready[name](params, *given)

    def _open(self, path: Path, piece: Any, arguments: tuple[Any, ...], static: dict[str, Any]) -> jax.stages.Compiled:
        config = self.model.config
        if path.exists():
            function = functools.partial(piece, self.model, **static)
            try:
                loaded = load_executable(path, function, arguments, config, self.mesh)
                self.say(f"executable {path.name}: loaded")
                return loaded
            except InputError as error:
                self.say(f"note: {error}; compiled again")
        with _really_compiling():
            compiled = piece.lower(self.model, *arguments, **static).compile()
        try:
            save_executable(path, compiled, config, {} if self.mesh is None else self.mesh.shape)
            self.say(f"executable {path.name}: compiled and kept")
        except InputError as error:
            self.say(f"note: {error}")
        return compiled

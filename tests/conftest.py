"""Strict modes for every test, and where the material outside the repository lies."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_legacy_prng_key", "error")  # new-style typed keys only

# Shapes and types in the signatures of these packages are checked at every call, in the tests only.
install_import_hook(["spatia_jax.io"], "strict.check")

REPOSITORY = Path(__file__).resolve().parent.parent
_MANY_KILOBYTES = 3_000_000


def _folder_or_skip(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set {variable} to run this test")
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real photos and sequences; tests that need them skip where they are absent."""
    return _folder_or_skip("SPATIA_SHARED_DIR", REPOSITORY.parent / "shared")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference inputs and outputs of the official implementation; skips like `shared_dir`."""
    return _folder_or_skip("SPATIA_GOLDEN_DIR", REPOSITORY.parent / "shared" / "golden")


@pytest.fixture(scope="session")
def micro_records() -> list[dict]:
    """All sequences of tests/configs/micro.py; drawn once, as that takes longer than what most tests do with them."""
    from spatia_jax.config import load_experiment
    from spatia_jax.data.procedural import ProceduralSource

    source = ProceduralSource(load_experiment(REPOSITORY / "tests" / "configs" / "micro.py").procedural)
    return [source[index] for index in range(len(source))]


@pytest.fixture(scope="module", autouse=True)
def _programs_go_when_there_are_many():
    """JAX keeps all programs that a process has compiled: thousands, in the end, and Python's collector walks them."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > _MANY_KILOBYTES:
        jax.clear_caches()
        gc.collect()

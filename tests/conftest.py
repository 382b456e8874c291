"""Strict modes for every test, and where the material outside the repository lies."""

from __future__ import annotations

import os
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

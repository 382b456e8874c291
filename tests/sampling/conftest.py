"""The micro experiment's config."""

from pathlib import Path

import pytest

from spatia_jax.config import load_experiment


@pytest.fixture(scope="session")
def micro_config():
    return load_experiment(Path(__file__).resolve().parent.parent / "configs" / "micro.py")

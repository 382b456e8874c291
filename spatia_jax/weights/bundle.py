"""All weights of an experiment from one folder, or those that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from spatia_jax.errors import InputError
from spatia_jax.model import Model, Params
from spatia_jax.text import Tokenizer
from spatia_jax.weights.store import load_params


def weights_folder(experiment: str, given: Path | None) -> Path:
    """The folder that holds the weights: the given one, or the package's own for an experiment that it embeds.

    Raises:
        InputError: nothing was given and nothing is embedded under that name.
    """
    if given is not None:
        if not given.is_dir():
            raise InputError(f"{given}: no such folder of weights")
        return given
    embedded = Path(str(resources.files("spatia_jax"))) / "assets" / experiment
    if not embedded.is_dir():
        raise InputError(f"config {experiment!r} has no embedded weights; say where they are with --weights DIR")
    return embedded


def load_weights(model: Model, folder: Path) -> tuple[Params, Tokenizer]:
    """Parameters of all networks, and the tokenizer that goes with them."""
    abstract = model.abstract_params()
    params = {name: load_params(folder / f"{name}.safetensors", abstract[name]) for name in model.parts}
    return params, Tokenizer.load(folder)

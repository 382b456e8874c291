"""The weights of an experiment from one folder, network by network, or those that come with the package."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spatia_jax.errors import InputError
from spatia_jax.model import Model, Params
from spatia_jax.text import Tokenizer
from spatia_jax.weights.store import find_params, load_params, misfits

LARGE = ("transformer", "text_encoder", "lora")  # networks that can be held in another type than float32
_OPTIONAL = {"motion": "set motion = None in the config to find what moves without weights"}


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


def check_weights(model: Model, folder: Path, networks: Iterable[str]) -> None:
    """Raises InputError with all that is missing, unknown or mis-shaped in any of `networks`; reads headers only."""
    found = {_find(folder, name): name for name in networks}
    problems = {path: misfits(path, model.abstract_params()[name]) for path, name in found.items()}
    lines = [f"{path} does not fit this config: " + "; ".join(wrong) for path, wrong in problems.items() if wrong]
    if lines:
        raise InputError(". ".join(lines))


def load_network(model: Model, folder: Path, name: str, *, shardings: Any = None, dtype: Any = None) -> Params:
    """Parameters of one network, each device's pieces straight to it.

    Args:
        shardings: where they lie: a pytree like the parameters (`parallel.param_shardings`); None: the default device.
        dtype: of the kernels, embeddings and LoRA factors of the large networks, which are nearly all the bytes; None:
            float32, as everything else always is. (Norms, biases and tables are computed in it; autoencoder and depth
            network compute in the type of their kernels, and are small.)

    Raises:
        InputError: it is not there, not whole, or does not fit the config; all differences are listed.
    """

    abstract = with_dtype(model.abstract_params()[name], name, dtype)
    if shardings is not None:
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
    return load_params(_find(folder, name), abstract)


def _find(folder: Path, name: str) -> Path:
    """Where a network lies; a folder that is older than the network is told how to do without."""
    try:
        return find_params(folder, name)
    except InputError as error:
        if name not in _OPTIONAL:
            raise
        raise InputError(f"{error}; {_OPTIONAL[name]}") from None


def with_dtype(abstract: Params, name: str, dtype: Any) -> Params:
    """Shapes of a network's parameters as they are loaded when the large networks are held in `dtype`."""

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        matrix = jax.tree_util.keystr(path[-1:], simple=True) in ("kernel", "embedding", "down", "up")
        return jax.ShapeDtypeStruct(shape.shape, jnp.dtype(dtype) if matrix else shape.dtype)

    return abstract if dtype is None or name not in LARGE else jax.tree_util.tree_map_with_path(leaf, abstract)


def load_weights(model: Model, folder: Path) -> tuple[Params, Tokenizer]:
    """Parameters of all networks on the default device, and the tokenizer that goes with them."""
    return {name: load_network(model, folder, name) for name in model.parts}, Tokenizer.load(folder)

"""What the comparisons with other packages share: a peer's random weights, their way to us, and how close is equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from spatia_jax.models.autoencoder import Autoencoder
from spatia_jax.models.depth import DepthNetwork
from spatia_jax.models.text_encoder import TextEncoder
from spatia_jax.models.transformer import VideoTransformer
from spatia_jax.weights.convert import convert
from spatia_jax.weights.layouts import ReleasedSizes
from spatia_jax.weights.store import find_params, load_params

MAX_ABS, RELATIVE_L2 = 5e-4, 3e-5  # in float32

# Where a downloaded pipeline has each network, and our module.
_NETWORKS = {
    "transformer": ("transformer", VideoTransformer),
    "autoencoder": ("vae", Autoencoder),
    "text_encoder": ("text_encoder", TextEncoder),
    "depth": ("depth", DepthNetwork),
}


def package(name: str) -> Any:
    """A peer's package; the test module is skipped without it."""
    return pytest.importorskip(name, reason=f"{name} is absent; `scripts/setup.sh parity` installs it")


torch = package("torch")


def randomise(peer: Any, seed: int = 0) -> Any:
    """Gives every parameter a random value in place: what starts at zero or one would hide a wrong map.

    Matrices and convolutions have unit gain, norms a scale around one, everything else a spread of 0.3.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            noise = torch.randn_like(parameter)
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim < 2 or parameter.shape[0] == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return peer.eval()


def imported(peer: Any, network: str, config: Any, folder: Path) -> tuple[nnx.GraphDef, Any]:
    """The peer as ours, over files: saved by its package, converted and loaded as a download is.

    Args:
        network: its name in weights.layouts.NETWORKS.
        config: our configuration of the same sizes.
        folder: an empty one; for the text encoder, with a tokenizer in it.
    """
    place, module = _NETWORKS[network]
    peer.save_pretrained(folder / place)
    sizes = dataclasses.replace(ReleasedSizes(), **{network: config})
    convert(folder, folder / "ours", sizes, networks=[network])
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))))
    params = load_params(find_params(folder / "ours", network), nnx.to_pure_dict(abstract))
    return graphdef, nnx.State(params)


def run(network: tuple[nnx.GraphDef, Any], method: str, *inputs: np.ndarray) -> np.ndarray:
    """`method` of an imported network, under jit."""
    graphdef, params = network
    call = jax.jit(lambda params, *inputs: getattr(nnx.merge(graphdef, params), method)(*inputs))
    return np.asarray(call(params, *inputs))


def to_torch(x: np.ndarray) -> Any:
    """Channels-last to a torch tensor with channels second."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def to_numpy(x: Any) -> np.ndarray:
    """The inverse of `to_torch`."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within MAX_ABS and RELATIVE_L2; prints both, for docs/parity.md (`pytest -rP`)."""
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max()
    relative = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    print(f"max abs {error:.1e}, relative L2 {relative:.1e}, output std {theirs.std():.2f}")
    assert theirs.std() > 0.1, "the comparison needs an output with structure"
    assert error <= MAX_ABS
    assert relative <= RELATIVE_L2

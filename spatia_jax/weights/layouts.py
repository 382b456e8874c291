"""What each official checkpoint must hold for given sizes, and the way into our parameters and back.

A slot is one official checkpoint (names.SLOTS); a network is one file of ours. They are the same but for the
transformer, whose main branch and control branch are two checkpoints and one network.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.autoencoder import AutoencoderConfig
from spatia_jax.models.depth import DepthConfig
from spatia_jax.models.lora import LowRank
from spatia_jax.models.text_encoder import TextEncoderConfig
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.weights import autoencoder, depth, text_encoder, transformer
from spatia_jax.weights.lora import lora_from_official, lora_to_official
from spatia_jax.weights.names import Naming
from spatia_jax.weights.streams import Mapped, Stacked

NETWORKS = ("autoencoder", "transformer", "text_encoder", "depth", "lora")
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_TRANSFORMER_SIZES = {1536: "Wan 1.3B", 3072: "Wan2.2-TI2V-5B", 5120: "Wan 14B"}
_UMT5_SIZES = {512: "small", 768: "base", 1024: "large", 2048: "XL", 4096: "XXL"}

Arrays = dict[str, "np.ndarray | Stacked"]


class Sizes(Protocol):
    """What of an Experiment decides the shapes of its weights."""

    @property
    def transformer(self) -> TransformerConfig: ...
    @property
    def autoencoder(self) -> AutoencoderConfig: ...
    @property
    def text_encoder(self) -> TextEncoderConfig: ...
    @property
    def depth(self) -> DepthConfig: ...
    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class ReleasedSizes:
    """The sizes of the released weights, which the networks' configs have as defaults."""

    transformer: TransformerConfig = TransformerConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    depth: DepthConfig = DepthConfig()


def slots_of(network: str, sizes: Sizes) -> tuple[str, ...]:
    """The official checkpoints that one network of ours is made of."""
    if network == "transformer" and sizes.transformer.control_layers:
        return ("transformer", "control")
    return (network,)


def check(naming: Naming, tensors: Mapping[str, np.ndarray], sizes: Sizes) -> list[str]:
    """Everything that is wrong with a checkpoint for its slot, a line each; an empty list: it fits.

    A checkpoint of another size than `sizes` is one line that names both sizes.
    """
    found = {official: tensors[stored] for official, stored in naming.stored.items()}
    if other := other_size(naming.slot, found, sizes):
        return [other]
    expected = official_shapes(naming.slot, sizes, found)
    ignored = depth.UNREAD if naming.slot == "depth" else ()
    problems = [f"missing {name}" for name in sorted(expected) if name not in found]
    problems += [
        f"unknown {naming.stored[name]}"
        for name in sorted(found)
        if name not in expected and not name.startswith(ignored or ("\0",))
    ]
    for name in sorted(set(expected) & set(found)):
        if found[name].shape != expected[name]:
            problems.append(f"{naming.stored[name]} has shape {found[name].shape}, not {expected[name]}")
        elif str(found[name].dtype) not in _FLOATS:
            problems.append(f"{naming.stored[name]} is {found[name].dtype}: quantised weights are unsupported")
    return problems


def other_size(slot: str, found: Mapping[str, np.ndarray], sizes: Sizes) -> str | None:
    """A line when the checkpoint is the right network in another size, else None."""

    def differs(name: str, axis: int, wanted: int) -> int | None:
        size = found[name].shape[axis] if name in found and found[name].ndim > axis else wanted
        return None if size == wanted else size

    dim = sizes.transformer.dim
    if slot == "transformer" and (width := differs("patch_embedding.weight", 0, dim)):
        known = f"{_TRANSFORMER_SIZES[width]}, " if width in _TRANSFORMER_SIZES else ""
        wanted = f"{_TRANSFORMER_SIZES[dim]}, " if dim in _TRANSFORMER_SIZES else ""
        return f"is a transformer of another size ({known}width {width}); the config asks for {wanted}width {dim}"
    if slot == "transformer" and (channels := differs("patch_embedding.weight", 1, sizes.transformer.in_dim)):
        return (
            f"is a transformer for latents of {channels} channels (TI2V-5B: 48; Wan2.1 and I2V have other ones); "
            f"the config asks for {sizes.transformer.in_dim}"
        )
    if slot == "control" and (width := differs("vace_patch_embedding.weight", 0, dim)):
        return f"is a control branch of width {width}; the config's transformer has width {dim}"
    if slot == "autoencoder" and (channels := differs("conv2.weight", 0, sizes.autoencoder.z_dim)):
        known = "the Wan2.1 autoencoder, " if channels == 16 else ""
        return f"is of another size ({known}{channels} latent channels); the config asks for {sizes.autoencoder.z_dim}"
    if slot == "text_encoder" and (width := differs("token_embedding.weight", 1, sizes.text_encoder.dim)):
        known = f"UMT5-{_UMT5_SIZES[width]}, " if width in _UMT5_SIZES else ""
        return f"is of another size ({known}width {width}); the config asks for width {sizes.text_encoder.dim}"
    return None


def official_shapes(slot: str, sizes: Sizes, found: Mapping[str, np.ndarray] | None = None) -> dict[str, tuple]:
    """Names and shapes of a slot's tensors; those of a LoRA follow from the layers and the rank that it has."""
    return _lora_shapes(sizes, found or {}) if slot == "lora" else dict(_fixed_shapes(slot, sizes))


@functools.cache
def _fixed_shapes(slot: str, sizes: Sizes) -> dict[str, tuple]:
    match slot:
        case "transformer" | "control":
            both = transformer.abstract_official(sizes.transformer)
            return {name: tensor.shape for name, tensor in both[slot == "control"].items()}
        case "autoencoder":
            return autoencoder.official_shapes(sizes.autoencoder)
        case "text_encoder":
            abstract = text_encoder.abstract_params(sizes.text_encoder)
            tensors = jax.eval_shape(lambda params: text_encoder.to_official(sizes.text_encoder, params), abstract)
            return {name: tensor.shape for name, tensor in tensors.items()}
        case "depth":
            # Zeros that take no memory: every axis has stride 0.
            zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), _abstract("depth", sizes))
            return {name: tensor.shape for name, tensor in depth.to_official(sizes.depth, zeros).items()}
    raise ValueError(slot)


def import_network(network: str, tensors: Mapping[str, Mapping[str, np.ndarray]], sizes: Sizes) -> Arrays:
    """Our arrays by their names in our files, from the checked tensors of each slot (official names)."""
    mapped = {slot: {name: np.asarray(t).view(Mapped) for name, t in group.items()} for slot, group in tensors.items()}
    match network:
        case "transformer":
            state = transformer.from_official(sizes.transformer, mapped["transformer"], mapped.get("control"))
        case "autoencoder":
            state = autoencoder.from_official(sizes.autoencoder, mapped["autoencoder"])
        case "text_encoder":
            state = text_encoder.from_official(sizes.text_encoder, mapped["text_encoder"])
        case "depth":
            state = depth.from_official(sizes.depth, dict(tensors["depth"]))
        case "lora":
            lora = lora_from_official(sizes.transformer, mapped["lora"])
            return {f"{path}.{side}": getattr(pair, side) for path, pair in lora.items() for side in ("down", "up")}
    return {_our_name(path): leaf.get_raw_value() for path, leaf in nnx.to_flat_state(state)}


def export_network(network: str, arrays: Mapping[str, np.ndarray], sizes: Sizes) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `import_network`: official tensors by slot.

    Raises:
        InputError: the arrays are not those of this network at these sizes; all differences are listed.
    """
    if network == "lora":
        paths = sorted({name.rpartition(".")[0] for name in arrays})
        if {f"{path}.{side}" for path in paths for side in ("down", "up")} != set(arrays):
            raise InputError("weights of the lora: every layer must have both factors, <layer>.down and <layer>.up")
        factors: Mapping[str, Any] = arrays  # numpy's serve here as well as JAX's
        lora = {path: LowRank(factors[f"{path}.down"], factors[f"{path}.up"]) for path in paths}
        return {"lora": lora_to_official(lora)}
    abstract = {_our_name(path): (path, leaf) for path, leaf in nnx.to_flat_state(_abstract(network, sizes))}
    problems = [f"missing {name}" for name in abstract if name not in arrays]
    problems += [f"unknown {name}" for name in arrays if name not in abstract]
    problems += [
        f"{name} has shape {arrays[name].shape}, not {leaf.shape}"
        for name, (_, leaf) in abstract.items()
        if name in arrays and arrays[name].shape != leaf.shape
    ]
    if problems:
        raise InputError(f"weights of the {network} do not fit the config: " + "; ".join(problems))
    state = nnx.from_flat_state([(path, leaf.replace(arrays[name])) for name, (path, leaf) in abstract.items()])
    match network:
        case "transformer":
            pair = transformer.to_official(sizes.transformer, state)
            return {slot: part for slot, part in zip(("transformer", "control"), pair, strict=True) if part}
        case "autoencoder":
            return {network: autoencoder.to_official(sizes.autoencoder, state)}
        case "text_encoder":
            return {network: text_encoder.to_official(sizes.text_encoder, state)}
        case "depth":
            return {network: depth.to_official(sizes.depth, state)}
    raise ValueError(network)


def _abstract(network: str, sizes: Sizes) -> nnx.State:
    module = {"transformer": transformer, "autoencoder": autoencoder, "text_encoder": text_encoder, "depth": depth}
    return module[network].abstract_params(getattr(sizes, network))


def _our_name(path: tuple) -> str:
    return ".".join(map(str, path))  # as weights.store names them


def _lora_shapes(sizes: Sizes, found: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    """All blocks of every layer that the LoRA has in some block, at the rank of its first tensor."""
    prefix, end_a, end_b = "pipe.dit.", ".lora_A.default.weight", ".lora_B.default.weight"
    linears = official_shapes("transformer", sizes)
    rank = next((t.shape[0] for name, t in sorted(found.items()) if name.endswith(end_a) and t.ndim), 0)
    layers = {name.removeprefix(prefix).removesuffix(end_a).removesuffix(end_b) for name in found}
    kinds = {layer.split(".", 2)[2] for layer in layers if layer.startswith("blocks.") and layer.count(".") >= 2}
    shapes = {}
    for kind in sorted(kinds):
        for i in range(sizes.transformer.num_layers):
            weight = linears.get(f"blocks.{i}.{kind}.weight", ())
            if len(weight) == 2:
                shapes[f"{prefix}blocks.{i}.{kind}{end_a}"] = (rank, weight[1])
                shapes[f"{prefix}blocks.{i}.{kind}{end_b}"] = (weight[0], rank)
    return shapes

"""Official tensors of the diffusion transformer and its control branch <-> our parameters, one to one, both ways.

Official names are those of Wan2.2-TI2V-5B (`dit`) and of Spatia's control file (`control`). Official linear weights are
[out, in], ours [in, out]; official patch embeddings are 3D convolutions [out, c, 1, h, w], ours linear over (h, w, c).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.transformer import TransformerConfig, VideoTransformer, init_control_from_main

Tensors = dict[str, Any]

# Linear layers of a block, by our name and the official one; LoRA files speak of the same ones.
BLOCK_LINEARS = {
    **{f"{attention}.{part}": f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"},
    "ffn.up": "ffn.0",
    "ffn.down": "ffn.2",
}
_BLOCK_NORMS = {
    f"{attention}.{norm}.scale": f"{attention}.{norm}.weight"
    for attention in ("self_attn", "cross_attn")
    for norm in ("norm_q", "norm_k")
} | {"norm_cross.scale": "norm3.weight", "norm_cross.bias": "norm3.bias"}


@dataclass(frozen=True)
class Entry:
    """One parameter of ours: its path, its official name (`{}` = index in the stack), and how the layout differs."""

    path: str
    official: str
    layout: str = "same"  # "same" | "linear" | "patch" | "table"
    stacked: int | None = None

    def names(self) -> list[str]:
        return [self.official.format(i) for i in range(self.stacked or 1)]

    def load(self, tensors: list) -> Any:
        """Our value from the official tensors of `names()`."""
        ours = [self._ours(tensor) for tensor in tensors]
        # Stack where the tensors live: on the host for numpy arrays, traced for tracers.
        return ours[0].__array_namespace__().stack(ours) if self.stacked else ours[0]

    def unload(self, value, patch_size: tuple[int, int, int]) -> list:
        """The official tensors of `names()` from our value."""
        return [self._official(layer, patch_size) for layer in (value if self.stacked else [value])]

    def _ours(self, tensor):
        if self.layout == "linear":
            return tensor.T
        if self.layout == "patch":
            return tensor.transpose(2, 3, 4, 1, 0).reshape(-1, tensor.shape[0])
        return tensor[0] if self.layout == "table" else tensor

    def _official(self, value, patch_size):
        if self.layout == "linear":
            return value.T
        if self.layout == "patch":
            return value.reshape(*patch_size, -1, value.shape[-1]).transpose(4, 3, 0, 1, 2)
        return value[None] if self.layout == "table" else value


def _linear(path: str, official: str, layout: str = "linear", stacked: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{path}.kernel", f"{official}.weight", layout, stacked)
    yield Entry(f"{path}.bias", f"{official}.bias", "same", stacked)


def _block(path: str, official: str, stacked: int) -> Iterator[Entry]:
    yield Entry(f"{path}.modulation", f"{official}.modulation", "table", stacked)
    for ours, theirs in BLOCK_LINEARS.items():
        yield from _linear(f"{path}.{ours}", f"{official}.{theirs}", stacked=stacked)
    for ours, theirs in _BLOCK_NORMS.items():
        yield Entry(f"{path}.{ours}", f"{official}.{theirs}", "same", stacked)


def dit_entries(config: TransformerConfig) -> Iterator[Entry]:
    """Every parameter of the main branch."""
    yield from _linear("patch_embedding", "patch_embedding", "patch")
    for mlp in ("text_embedding", "time_embedding"):
        yield from _linear(f"{mlp}.up", f"{mlp}.0")
        yield from _linear(f"{mlp}.down", f"{mlp}.2")
    yield from _linear("time_projection", "time_projection.1")
    yield from _block("blocks", "blocks.{}", config.num_layers)
    yield Entry("head.modulation", "head.modulation", "table")
    yield from _linear("head.linear", "head.head")


def control_entries(config: TransformerConfig) -> Iterator[Entry]:
    """Every parameter of the control branch."""
    count = len(config.control_layers)
    if not count:
        return
    yield from _linear("control.patch_embedding", "vace_patch_embedding", "patch")
    yield from _linear("control.before_proj", "vace_blocks.0.before_proj")
    yield from _linear("control.blocks.after_proj", "vace_blocks.{}.after_proj", stacked=count)
    yield from _block("control.blocks.block", "vace_blocks.{}", count)


def abstract_params(config: TransformerConfig) -> nnx.State:
    """Shapes and dtypes of all parameters, without memory."""
    return jax.eval_shape(lambda: nnx.state(VideoTransformer(config, rngs=nnx.Rngs(0))))


def abstract_official(config: TransformerConfig) -> tuple[Tensors, Tensors]:
    """Names, shapes and dtypes of the official tensors (dit, control) of this configuration, without memory."""
    return jax.eval_shape(lambda params: to_official(config, params), abstract_params(config))


def from_official(config: TransformerConfig, dit: Tensors, control: Tensors | None = None) -> nnx.State:
    """Parameters of `VideoTransformer(config)` from official tensors; their dtypes are kept, numpy stays numpy.

    Without control tensors, the control branch starts from the main one (`init_control_from_main`).

    Raises:
        InputError: a tensor is missing, unknown, or has another shape than the configuration says.
    """
    expected_dit, expected_control = abstract_official(config)
    check_tensors("transformer", dit, expected_dit)
    values = {entry.path: entry.load([dit[name] for name in entry.names()]) for entry in dit_entries(config)}
    abstract = {".".join(map(str, path)): param for path, param in nnx.to_flat_state(abstract_params(config))}
    if control is not None:
        check_tensors("control branch", control, expected_control)
    for entry in control_entries(config):
        if control is not None:
            values[entry.path] = entry.load([control[name] for name in entry.names()])
        else:
            sample = dit["patch_embedding.weight"]
            values[entry.path] = sample.__array_namespace__().zeros(abstract[entry.path].shape, sample.dtype)
    params = nnx.from_flat_state([(tuple(path.split(".")), p.replace(values[path])) for path, p in abstract.items()])
    return init_control_from_main(params, config) if control is None and config.control_layers else params


def to_official(config: TransformerConfig, params: nnx.State) -> tuple[Tensors, Tensors]:
    """Official tensors (dit, control) of our parameters; the control part is empty without control layers."""
    values = {".".join(map(str, path)): param[...] for path, param in nnx.to_flat_state(params)}

    def unload(entries):
        pairs = (zip(e.names(), e.unload(values[e.path], config.patch_size), strict=True) for e in entries)
        return {name: tensor for pair in pairs for name, tensor in pair}

    return unload(dit_entries(config)), unload(control_entries(config))


def check_tensors(what: str, tensors: Tensors, expected: Tensors) -> None:
    """Raise InputError unless `tensors` has exactly the names and shapes of `expected`."""
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(f"{what} weights: {len(missing)} of {len(expected)} tensors are missing, first {missing[0]!r}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise InputError(f"{what} weights: {len(unknown)} tensors do not belong to it, first {unknown[0]!r}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name].shape:
            raise InputError(
                f"{what} weights: {name!r} has shape {tuple(tensor.shape)}; expected {expected[name].shape} "
                "by the configuration"
            )

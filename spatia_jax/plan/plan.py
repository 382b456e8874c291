"""Which arrays a run holds on each device, stage by stage.

The stages are the compiled pieces of `sampling.compiled`, in the order in which sample.py calls them, traced with
abstract arguments. What a stage holds are its arguments and what waits beside them: exact, from shapes. What it makes
while it runs is counted by `liveness`. Parameters are split as `parallel.param_specs` says; all else is counted whole
on every device, since a clip is one example. The text encoder is there while texts are read, and then no more.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from spatia_jax import diffusion
from spatia_jax.cameras import Cameras
from spatia_jax.config import Experiment
from spatia_jax.model import Model, Params
from spatia_jax.models.attention import is_fused
from spatia_jax.parallel import MeshConfig, param_specs
from spatia_jax.plan.liveness import Peak, peak_bytes
from spatia_jax.sampling import compiled
from spatia_jax.splat import Projection
from spatia_jax.state import ClipRequest, Conditions
from spatia_jax.weights.bundle import with_dtype
from spatia_jax.world import new_world

Platform = Literal["cpu", "gpu", "tpu"]
WeightsDtype = Literal["float32", "bfloat16"]

PARTS = ("text_encoder", "transformer", "autoencoder", "depth", "inpainter", "motion", "lora")


@dataclass(frozen=True)
class Setting:
    """What decides how much memory a run needs.

    Attributes:
        config: the experiment.
        mesh: over how many devices the parameters are split.
        weights_dtype: of kernels and embeddings; norms, biases and tables stay float32.
        platform: whose attention and convolutions are counted.
    """

    config: Experiment
    mesh: MeshConfig = MeshConfig()
    weights_dtype: WeightsDtype = "float32"
    platform: Platform = "cpu"


@dataclass(frozen=True)
class Row:
    """Arrays that lie on each device for a while: their bytes there, and the fields of the config that decide them."""

    name: str
    bytes: int
    depends_on: str


@dataclass(frozen=True)
class Stage:
    """One piece of a run: bytes that lie on each device when it starts, and what it makes beside them."""

    name: str
    held: int
    made: Peak

    @property
    def bytes(self) -> int:
        return self.held + self.made.bytes


@dataclass(frozen=True)
class Plan:
    """The memory of a run: what is held, and every stage."""

    setting: Setting
    rows: tuple[Row, ...]
    stages: tuple[Stage, ...]

    @property
    def peak(self) -> Stage:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: stage.bytes)

    def table(self) -> str:
        """Everything for people, with the largest arrays of the stage that needs most."""
        setting = self.setting
        count = setting.mesh.num_devices
        lines = [
            f"{setting.config.name}, weights {setting.weights_dtype}, on each of {count} {setting.platform} devices",
            "",
            *(f"  {row.name:30}{size(row.bytes):>12}   {row.depends_on}" for row in self.rows),
            "",
            f"  {'stage':30}{'held':>12}{'made':>12}{'together':>12}",
            *(f"  {s.name:30}{size(s.held):>12}{size(s.made.bytes):>12}{size(s.bytes):>12}" for s in self.stages),
            "",
            f"  expected peak {size(self.peak.bytes)} in '{self.peak.name}'; the largest arrays that it makes:",
            *(f"  {size(buffer.bytes):>12}   {buffer.name}" for buffer in self.peak.made.buffers[:5]),
        ]
        return "\n".join(lines)


def plan(
    config: Experiment, mesh: MeshConfig, *, weights_dtype: WeightsDtype = "float32", platform: Platform | None = None
) -> Plan:
    """Counts the memory of a run of `config`; computes and allocates nothing.

    Args:
        mesh: over how many devices the parameters are split.
        weights_dtype: of kernels and embeddings.
        platform: of the devices; by default the one that JAX uses here.
    """
    setting = Setting(config, mesh, weights_dtype, platform or jax.default_backend())  # type: ignore[arg-type]
    params = abstract_weights(_model(config), weights_dtype)
    return Plan(setting, tuple(_rows(setting, params)), tuple(_stages(setting, params)))


def abstract_weights(model: Model, dtype: WeightsDtype) -> Params:
    """Shapes and dtypes of all parameters as sample.py loads them."""
    return {name: with_dtype(leaves, name, dtype) for name, leaves in model.abstract_params().items()}


def shares(params: Params, mesh: MeshConfig) -> Params:
    """For each array, its shape on one device."""
    abstract = AbstractMesh(tuple(mesh.sizes.values()), tuple(mesh.sizes))

    def share(spec: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return _shape(NamedSharding(abstract, spec).shard_shape(leaf.shape), leaf.dtype)

    return jax.tree.map(share, param_specs(params, mesh), params, is_leaf=lambda x: isinstance(x, PartitionSpec))


def nbytes(*trees: Any) -> int:
    """Bytes of all arrays in some pytrees; keys of random numbers are left out."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def device_memory() -> int:
    """Bytes that programs can use on the first device here; on CPU, all memory of the machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _rows(setting: Setting, params: Params) -> Iterator[Row]:
    clip, stored = setting.config.clip, setting.config.memory
    for name in (part for part in PARTS if part in params):
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params[name]))
        until = "; until all texts are read" if name == "text_encoder" else ""
        yield Row(name, nbytes(shares(params[name], setting.mesh)), f"{count / 1e6:,.0f} M parameters{until}")
    world = _world(_model(setting.config))
    yield Row("point map", nbytes(world.point_map), f"memory.capacity {stored.capacity:,}")
    yield Row("frame bank", nbytes(world.frame_bank), f"memory.bank_frames {stored.bank_frames}")
    yield Row("history", nbytes(world.history, world.history_cameras), f"clip.history_frames {clip.history_frames}")


def _stages(setting: Setting, params: Params) -> Iterator[Stage]:
    model, clip = _model(setting.config), setting.config.clip
    world = _world(model)
    reader = {"text_encoder": params["text_encoder"]}
    yield _stage(setting, "read a text", compiled.embed_text, reader, *_text(setting.config))

    rest = without_text_encoder(params)
    image = (clip.height, clip.width)
    photo, depth, moving = _shape((*image, 3), jnp.uint8), _shape(image, jnp.float32), _shape(image, jnp.bool_)
    yield _stage(setting, "depth of the photo", compiled.estimate_view_depth, rest, world, photo, _cameras())
    observed = _stage(setting, "open the world", compiled.observe, {}, world, photo, depth, _cameras(), moving)
    yield dataclasses.replace(observed, held=observed.held + nbytes(shares(rest, setting.mesh)))

    for opening, kind in ((True, "opening clip"), (False, "further clips")):
        a = clip_arrays(model, params, opening=opening)
        yield _stage(setting, f"{kind}: project, encode", compiled.before_denoising, rest, world, a.request,
                     opening=opening)  # fmt: skip
        yield _stage(setting, f"{kind}: denoise", compiled.denoising_step, rest, a.conditions, a.state, a.row,
                     beside=(world, a.request, a.projection, a.slots))  # fmt: skip
        latents = jax.eval_shape(lambda state, skip=a.conditions.num_references: state.latents[:, skip:], a.state)
        yield _stage(setting, f"{kind}: decode, map", compiled.after_denoising, rest, world, a.request, a.projection,
                     latents, a.slots, beside=(a.conditions, a.state), opening=opening)  # fmt: skip

    if setting.config.joint_decode:
        latent = _shape((1, 1, *latents.shape[2:]), latents.dtype)
        _, carry = jax.eval_shape(functools.partial(compiled.decode_chunk, model), rest, latent, None)
        yield _stage(setting, "the video: decode", compiled.decode_chunk, rest, latent, carry, beside=world)


class ClipArrays(NamedTuple):
    """What passes between the pieces of a clip, as shapes."""

    request: ClipRequest
    projection: Projection
    conditions: Conditions
    slots: jax.ShapeDtypeStruct
    state: diffusion.SamplerState
    row: diffusion.Plan


def clip_arrays(model: Model, params: Params, *, opening: bool) -> ClipArrays:
    """Shapes of what one clip's pieces are given and return."""
    clip = model.config.clip
    new = clip.opening_frames if opening else clip.new_frames
    context = jax.eval_shape(functools.partial(Model.embed_text, model), params, *_text(model.config))
    context = _shape(context.shape[1:], context.dtype)
    moving = _shape((new, clip.height, clip.width), jnp.bool_)
    request = ClipRequest(_cameras(new), context, context, moving)
    before = functools.partial(compiled.before_denoising, model, opening=opening)
    projection, conditions, slots = jax.eval_shape(before, without_text_encoder(params), _world(model), request)
    tables = diffusion.make_plan(model.config.sampler)
    row = jax.tree.map(lambda table: _shape(table.shape[1:], jnp.float32), tables)
    return ClipArrays(request, projection, conditions, slots, jax.eval_shape(compiled.init_state, conditions), row)


def without_text_encoder(params: Params) -> Params:
    """The parameters that a run holds after its texts are read."""
    return {name: part for name, part in params.items() if name != "text_encoder"}


def _stage(
    setting: Setting, name: str, piece: Any, params: Params, *arguments: Any, beside: Any = (), **static: Any
) -> Stage:
    """A stage that runs `piece(model, params, *arguments)`, while other arrays lie `beside`."""
    mine, transformer = shares(params, setting.mesh), setting.config.transformer
    sharded = jax.tree.map(lambda whole, share: whole.shape != share.shape, params, mine)
    function = functools.partial(piece, _model(setting.config), **static)
    inputs = (params, *arguments) if params else arguments
    flags = (sharded, jax.tree.map(lambda _: False, arguments)) if params else jax.tree.map(lambda _: False, arguments)
    made = peak_bytes(
        function, *inputs,
        platform=setting.platform,
        fused=("attention",) if is_fused(setting.platform, transformer.dtype, transformer.head_dim) else (),
        sharded=flags,
    )  # fmt: skip
    return Stage(name, nbytes(mine, arguments, beside), made)


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # stands in for an array, which the types of pytrees ask for


_model = functools.cache(Model)  # so that the layers of equal experiments are made once


def _world(model: Model) -> Any:
    return jax.eval_shape(lambda: new_world(model, jax.random.key(0)))


def _text(config: Experiment) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    shape = (1, config.clip.text_length)
    return _shape(shape, jnp.int32), _shape(shape, jnp.bool_)


def _cameras(*shape: int) -> Cameras:
    return Cameras(_shape((*shape, 3, 4), jnp.float32), _shape((*shape, 4), jnp.float32))

"""The programs that are compiled ahead of time, with shapes in place of all arrays; nothing is allocated.

They are the functions that train.py and sample.py run, on the arrays that these give them.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from spatia_jax import diffusion, world
from spatia_jax.cameras import Cameras
from spatia_jax.model import Model
from spatia_jax.parallel import batch_shardings, on_every_device, param_shardings, replicated, state_shardings
from spatia_jax.parallel.flops import decoder_flops, encoder_flops, transformer_flops
from spatia_jax.plan.plan import WeightsDtype, abstract_weights, without_text_encoder
from spatia_jax.sampling import compiled
from spatia_jax.state import ClipRequest, Conditions
from spatia_jax.training.cost import clip_shape, example_flops
from spatia_jax.training.generator import GeneratorObjective
from spatia_jax.training.paper_stages import Stage, stage_config, stage_networks
from spatia_jax.training.step import compile_train_step, make_state

Kind = Literal["train", "sample", "decode", "clip-step"]
Clips = Literal["opening", "continuing"]


@dataclass(frozen=True)
class Program:
    """Something to compile.

    Attributes:
        function: under `jax.jit`.
        arguments: pytrees of ShapeDtypeStruct with shardings.
        classes: name of a class of arguments, and the pytree of those that belong to it.
        flops: operations that one run needs on all devices together (`parallel.flops`).
    """

    function: Any
    arguments: tuple[Any, ...]
    classes: dict[str, Any]
    flops: float

    def compile(self, mesh: Mesh) -> jax.stages.Compiled:
        """For the devices of `mesh`, which need not be there."""
        with jax.set_mesh(mesh):
            return self.function.lower(*self.arguments).compile()


def training_program(stage: Stage, model: Model, mesh: Mesh, clips: Clips | None = None) -> Program:
    """The step of a stage on cached latents, as `training.paper_stages` runs it: batch, what is trained and what is
    frozen are the config's.

    Args:
        clips: of a batch; "continuing" ones have history and references. Default: as the paper, opening clips in stage
            1 and continuing ones in stage 2.
    """
    cached = dataclasses.replace(model.config.training, latents="cached")
    model = Model(dataclasses.replace(model.config, training=cached))
    config = stage_config(model.config.training, stage)
    opening = clips == "opening" if clips else stage == "stage1"
    objective = GeneratorObjective(model, stage_networks(model, stage))
    frozen = {name: model.abstract_params()[name] for name in ("autoencoder", "inpainter") if name in model.networks}
    state = jax.eval_shape(
        lambda key, frozen: make_state(objective, config, key, frozen=frozen), jax.random.key(0), frozen
    )
    shardings = state_shardings(state, mesh)
    state = _placed(state, shardings)
    batch = abstract_batch(model, config.batch_size, opening=opening)
    batch = _placed(batch, batch_shardings(batch, mesh))
    key = _placed(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))
    classes = {
        "parameters": (state.params, state.frozen), "moving average": state.ema, "optimizer": state.opt_state,
        "inputs": batch,
    }  # fmt: skip
    step = compile_train_step(objective, config, shardings, mesh)
    flops = config.batch_size * example_flops(model, config, opening=opening)
    return Program(step, (state, batch, key), classes, flops)


def abstract_batch(model: Model, size: int, *, opening: bool) -> dict[str, Any]:
    """Examples as `training.examples` keeps them, as shapes."""
    shape, channels = clip_shape(model, opening=opening), model.config.autoencoder.z_dim

    def latents(frames: int, channels: int) -> Any:
        return _shape((size, frames, shape.rows, shape.columns, channels), jnp.float16)

    ids, mask = _shape((size, shape.text_length), jnp.int32), _shape((size, shape.text_length), jnp.bool_)
    references = {} if opening else {"references": latents(shape.references, channels)}
    batch = {"video": latents(shape.frames, channels), "control": latents(shape.frames, 2 * channels)}
    return batch | references | {"ids": ids, "mask": mask, "empty_ids": ids, "empty_mask": mask}


def sampling_program(kind: Kind, model: Model, mesh: Mesh, dtype: WeightsDtype) -> Program:
    """One denoising step with guidance, the decoding of a clip, or a whole round of the loop, of continuing clips.

    Args:
        dtype: of kernels and embeddings of the large networks.
    """
    weights = without_text_encoder(abstract_weights(model, dtype))
    names = {"sample": compiled.PAINTERS, "decode": ("autoencoder",)}.get(kind, tuple(weights))
    weights = {name: weights[name] for name in names if name in weights}
    params = _placed(weights, param_shardings(weights, mesh))
    if kind == "sample":
        conditions = abstract_conditions(model)
        row = jax.tree.map(lambda table: _shape(table.shape[1:]), diffusion.make_plan(model.config.sampler))
        given: tuple[Any, ...] = conditions, jax.eval_shape(compiled.init_state, conditions), row
        function = functools.partial(compiled.denoising_step, model)
    elif kind == "decode":
        shape = clip_shape(model, opening=False)
        given = (_shape((1, shape.frames, shape.rows, shape.columns, model.config.autoencoder.z_dim)),)
        function = functools.partial(Model.decode, model)
    else:
        given = jax.eval_shape(lambda: world.new_world(model, jax.random.key(0))), abstract_request(model)
        function = functools.partial(world.clip_step, model)
    # As in `sampling.compiled`: what goes from piece to piece lies whole on every device.
    inputs = jax.tree.map(lambda leaf: _placed(leaf, replicated(mesh)), given)
    run = jax.jit(lambda params, *given: on_every_device(function(params, *given)))
    return Program(run, (params, *inputs), {"parameters": params, "inputs": inputs}, _sampling_flops(kind, model))


def abstract_conditions(model: Model) -> Conditions:
    """What the transformer paints on in a continuing clip, as shapes."""
    shape, channels = clip_shape(model, opening=False), model.config.autoencoder.z_dim
    frames, picture = shape.references + shape.frames, (shape.rows, shape.columns)
    text = _shape((1, shape.text_length, model.config.text_encoder.dim))
    latents = _shape((1, frames, *picture, channels))
    control = _shape((1, shape.frames, *picture, 2 * channels)) if model.config.memory.use_map else None
    is_clean = _shape((frames,), jnp.bool_)
    return Conditions(latents, is_clean, control, latents, text, text, num_references=shape.references, opening=False)


def abstract_request(model: Model) -> ClipRequest:
    """What the user asks of a continuing clip, as shapes."""
    clip = model.config.clip
    cameras = Cameras(_shape((clip.new_frames, 3, 4)), _shape((clip.new_frames, 4)))
    text = _shape((clip.text_length, model.config.text_encoder.dim))
    return ClipRequest(cameras, text, text, _shape((clip.new_frames, clip.height, clip.width), jnp.bool_))


def _sampling_flops(kind: Kind, model: Model) -> float:
    config, shape = model.config, clip_shape(model, opening=False)
    passes = 1 if config.guidance == 1.0 else 2
    step = passes * transformer_flops(config.transformer, shape).forward
    decode = decoder_flops(config.autoencoder, shape.frames, shape.rows, shape.columns).forward
    if kind == "sample":
        return step
    if kind == "decode":
        return decode
    size = config.clip.height, config.clip.width
    encode = functools.partial(encoder_flops, config.autoencoder)
    # Projection and hole mask; history; each reference alone. Splatting and mapping are not counted.
    clips = 2 * encode(config.clip.continuing_frames, *size).forward + encode(config.clip.history_frames, *size).forward
    return config.sampler.steps * step + decode + clips + shape.references * encode(1, *size).forward


def _placed(tree: Any, shardings: Any) -> Any:
    def place(leaf: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, shardings)


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # stands in for an array, which the types of pytrees ask for

"""The video diffusion transformer: Wan2.2-TI2V's architecture with references, history and a control branch.

Latent frames come as [references | history | new] (spec section 2.5). Every latent frame has its own timestep, 0 for
clean ones. References are told apart by their rotary positions alone and receive no hints.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.models.control import ControlBranch, zeros
from spatia_jax.models.lora import Lora
from spatia_jax.models.rotary import rotary_table
from spatia_jax.models.transformer_layers import (
    Mlp,
    TransformerBlock,
    TransformerConfig,
    layer_norm,
    patchify,
    scaled,
    scan,
    stack,
    timestep_embedding,
    unpatchify,
    xavier,
)
from spatia_jax.parallel import spread_examples
from spatia_jax.parallel.sequence import spread_tokens


class Head(nnx.Module):
    """Modulated norm and projection to the patch's velocity; starts at zero."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.modulation = nnx.Param(jnp.zeros((2, config.dim)))
        self.linear = config.linear(config.dim, config.out_dim * int(np.prod(config.patch_size)), rngs, zeros)
        self.eps = config.eps

    def __call__(self, x: Float[Array, "b f s c"], time: Float[Array, "b f c"]) -> Float[Array, "b f s d"]:
        shift, scale = jnp.split(time[:, :, None] + self.modulation[...], 2, axis=2)
        return self.linear(layer_norm(x, self.eps) * (1 + scale) + shift)


class VideoTransformer(nnx.Module):
    """Predicts the flow velocity of every latent frame."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.patch_embedding = config.linear(config.in_dim * int(np.prod(config.patch_size)), dim, rngs)
        self.text_embedding = Mlp(config, (config.text_dim, dim, dim), jax.nn.gelu, xavier, rngs=rngs)
        self.time_embedding = Mlp(config, (config.freq_dim, dim, dim), jax.nn.silu, scaled(xavier, 0.3), rngs=rngs)
        self.time_projection = config.linear(dim, 6 * dim, rngs, zeros)
        self.blocks = stack(lambda rngs: TransformerBlock(config, rngs=rngs), config.num_layers, rngs)
        self.head = Head(config, rngs=rngs)
        self.control = ControlBranch(config, rngs=rngs) if config.control_layers else None
        self.config = config

    def __call__(
        self,
        latents: Float[Array, "b f p q c"],
        timesteps: Float[Array, "b f"],
        context: Float[Array, "b l text_dim"],
        *,
        control: Float[Array, "b g p q d"] | None = None,
        control_scale: float | Float[Array, ""] | Float[Array, " b"] = 1.0,
        num_references: int = 0,
        lora: Lora | None = None,
        merge_lora: bool = True,
    ) -> Float[Array, "b f p q out_dim"]:
        """Velocity (noise - clean) of every latent frame, float32.

        Args:
            latents: `num_references` reference frames, then history and new frames.
            timesteps: 0 .. 1000 for each latent frame, 0 where it is clean.
            context: text features; all positions are attended to.
            control: latents of projection and hole mask for the g = f - num_references frames after the references;
                None leaves the control branch out.
            control_scale: factor on the hints, one for all or one for each example.
            lora: update of the main blocks, merged into each as it runs; or, not to merge, beside its kernels, which is
                what gradients of the LoRA want.

        Raises:
            InputError: a shape does not fit the configuration or the other arguments.
        """
        config = self.config
        self._check(latents, timesteps, control, num_references)
        dtype = jnp.dtype(config.dtype)
        _, frames, rows, columns, _ = latents.shape
        _, height, width = config.patch_size

        x = self.patch_embedding(spread_tokens(patchify(latents, config.patch_size)).astype(dtype))
        context = spread_examples(self.text_embedding(context.astype(dtype)))
        time = self.time_embedding(timestep_embedding(timesteps, config.freq_dim)).astype(jnp.float32)
        modulation = self.time_projection(jax.nn.silu(time)).astype(jnp.float32)
        time, modulation = (spread_examples(y) for y in (time, modulation))
        modulation = modulation.reshape(*timesteps.shape, 6, config.dim)
        grid = (rows // height, columns // width)
        table = rotary_table(num_references, frames - num_references, *grid, config.head_dim)
        rotary = jnp.asarray(table.reshape(2, frames, grid[0] * grid[1], -1))

        if control is None or self.control is None:
            x, _ = scan(
                lambda block, x, _: (block(x, context, modulation, rotary), None),
                self.blocks, x, remat=config.remat, lora=lora, merge_lora=merge_lora,
            )  # fmt: skip
        else:
            after = slice(num_references, None)
            hints = self.control(control, x[:, after], context, modulation[:, after], rotary[:, after])
            hints = hints * jnp.reshape(jnp.asarray(control_scale, hints.dtype), (-1, 1, 1, 1))
            x = self._run_with_hints(x, context, modulation, rotary, hints, num_references, lora, merge_lora)
        patches = self.head(x, time)[:, :, : grid[0] * grid[1]]
        output = unpatchify(patches, config.patch_size, rows, columns).astype(jnp.float32)
        if control is None or not config.control_skip:
            return output
        skip = control[..., : config.out_dim] * jnp.reshape(jnp.asarray(control_scale, jnp.float32), (-1, 1, 1, 1, 1))
        return output + jnp.pad(skip, ((0, 0), (num_references, 0), (0, 0), (0, 0), (0, 0)))

    def _run_with_hints(self, x, context, modulation, rotary, hints, num_references, lora, merge_lora):
        """Scan the blocks; after each of `control_layers`, add its hint to the frames after the references."""
        layers = np.array(self.config.control_layers)
        index = np.zeros(self.config.num_layers, np.int32)
        index[layers] = np.arange(len(layers))
        # Every layer adds a hint so that all scan steps are one program; where none belongs, its weight is zero.
        weight = np.zeros(self.config.num_layers, np.float32)
        weight[layers] = 1.0

        def step(block, x, layer):
            index, weight = layer
            x = block(x, context, modulation, rotary)
            hinted = x[:, num_references:] + (weight * hints[index]).astype(x.dtype)
            return jnp.concatenate([x[:, :num_references], hinted], axis=1), None

        options = {"remat": self.config.remat, "lora": lora, "merge_lora": merge_lora}
        return scan(step, self.blocks, x, (index, weight), **options)[0]

    def _check(self, latents, timesteps, control, num_references):
        config = self.config
        _, frames, rows, columns, channels = latents.shape
        _, height, width = config.patch_size
        if channels != config.in_dim or rows % height or columns % width:
            raise InputError(
                f"latents have {rows} x {columns} positions of {channels} channels; expected multiples of "
                f"{height} x {width} and {config.in_dim} channels"
            )
        if timesteps.shape != latents.shape[:2]:
            raise InputError(f"timesteps have shape {timesteps.shape}; expected one a frame, {latents.shape[:2]}")
        if not 0 <= num_references < frames:
            raise InputError(f"num_references is {num_references}; of {frames} latent frames at least one must be new")
        if control is None:
            return
        if self.control is None:
            raise InputError("control was given to a transformer without control_layers")
        expected = (frames - num_references, rows, columns, config.control_in_dim)
        if control.shape[1:] != expected:
            raise InputError(f"control has shape {control.shape}; expected [b, *{expected}] (no references)")


def init_control_from_main(params: Any, config: TransformerConfig) -> Any:
    """Start the control branch as VACE does: blocks copied from the main blocks they sit beside, silent at first.

    The patch embedding reads the projection's latents as the main branch reads its own and ignores the remaining
    channels (the hole mask); `before_proj` and `after_proj` are zero, so that no hint changes the main branch.
    """
    layers = np.array(config.control_layers)
    embedding = params["patch_embedding"]["kernel"]
    kernel = embedding[...].reshape(-1, config.in_dim, config.dim)[:, : config.control_in_dim]
    kernel = jnp.pad(kernel, ((0, 0), (0, config.control_in_dim - kernel.shape[1]), (0, 0)))

    control = jax.tree.map(jnp.zeros_like, params["control"])
    control["patch_embedding"]["kernel"] = embedding.replace(kernel.reshape(-1, config.dim))
    control["patch_embedding"]["bias"] = params["patch_embedding"]["bias"]
    control["blocks"]["block"] = jax.tree.map(lambda stacked: stacked[layers], params["blocks"])
    return nnx.merge_state(params, nnx.State({"control": control}))

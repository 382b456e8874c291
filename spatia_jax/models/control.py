"""The control branch: transformer blocks over the projection's latents, whose outputs are hints for the main branch.

Structurally VACE (spec section 2.5): the first block sees the control tokens plus the main tokens before any block,
each further one the block before it; a zero-initialised projection turns every block's output into a hint.
"""

from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.models.transformer_layers import TransformerBlock, TransformerConfig, patchify, scan, stack
from spatia_jax.parallel.sequence import spread_tokens

zeros = nnx.initializers.zeros_init()


class ControlBlock(nnx.Module):
    """A transformer block and the projection from its output to a hint."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.block = TransformerBlock(config, rngs=rngs)
        self.after_proj = config.linear(config.dim, config.dim, rngs, zeros)


class ControlBranch(nnx.Module):
    """One control block for each of `config.control_layers`."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        _, height, width = config.patch_size
        self.patch_embedding = config.linear(config.control_in_dim * height * width, config.dim, rngs)
        self.before_proj = config.linear(config.dim, config.dim, rngs, zeros)
        self.blocks = stack(lambda rngs: ControlBlock(config, rngs=rngs), len(config.control_layers), rngs)
        self.config = config

    def __call__(
        self,
        control: Float[Array, "b f p q d"],
        tokens: Float[Array, "b f t c"],
        context: Float[Array, "b l c"],
        modulation: Float[Array, "b f 6 c"],
        rotary: Float[Array, "2 f real half"],
    ) -> Float[Array, "n b f t c"]:
        """Hints of all control layers, from the control latents and the main tokens of the same frames (t: spread)."""
        embedded = self.patch_embedding(spread_tokens(patchify(control, self.config.patch_size)).astype(tokens.dtype))

        def step(layer: ControlBlock, c, _):
            c = layer.block(c, context, modulation, rotary)
            return c, layer.after_proj(c)

        _, hints = scan(step, self.blocks, self.before_proj(embedded) + tokens, remat=self.config.remat)
        return hints

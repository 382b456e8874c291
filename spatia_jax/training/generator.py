"""What the generator is trained for: flow matching of new frames, given the map, the past and the text.

Paper sections 3.2 and 3.3, spec 1.5 to 1.7: stage 1 learns to paint opening clips on the projection, stage 2 adds
history and references. Which of the conditions an example keeps is drawn anew each time it is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spatia_jax import diffusion
from spatia_jax.model import Model
from spatia_jax.training.state import Params

_TEXT, _MAP, _REFERENCES, _NOISE = range(4)  # purposes folded into a step's key


@dataclass(frozen=True)
class GeneratorObjective:
    """Transformer, control branch and text encoder, trained together on latents of the frozen autoencoder."""

    model: Model

    def init(self, key: Array) -> Params:
        keys = jax.random.split(key)
        return {name: self.model.init(name, k) for name, k in zip(("transformer", "text_encoder"), keys, strict=True)}

    def loss(self, params: Params, batch: Any, key: Array) -> tuple[Array, dict[str, Array]]:
        """`batch` (see `training.examples`), latents in float16:

        video [b, f, p, q, c] (history, then new), control [b, f, p, q, 2c], ids and mask [b, l]; and in continuing
        clips references [b, k, p, q, c], whose presence tells the two kinds apart.
        """
        config, training = self.model.config, self.model.config.training
        video = batch["video"].astype(jnp.float32)
        size = len(video)

        def drop(purpose: int, probability: float) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, purpose), probability, (size,))

        ids = jnp.where(drop(_TEXT, training.drop_text)[:, None], batch["empty_ids"], batch["ids"])
        mask = jnp.where(drop(_TEXT, training.drop_text)[:, None], batch["empty_mask"], batch["mask"])
        context = self.model.embed_text(params, ids, mask)

        opening = "references" not in batch
        num_history = 1 if opening else 1 + (config.clip.history_frames - 1) // config.autoencoder.time_factor
        num_references = 0 if opening else batch["references"].shape[1]
        if not opening:
            references = batch["references"].astype(jnp.float32)
            # A missing reference is the oldest history frame, as in sampling.
            withheld = drop(_REFERENCES, training.drop_references)[:, None, None, None, None]
            references = jnp.where(withheld, video[:, :1], references)
            video = jnp.concatenate([references, video], axis=1)

        frame = jnp.arange(video.shape[1])
        is_new = frame >= num_references + num_history
        is_history = (frame >= num_references) & ~is_new & (not opening)
        noisy = diffusion.add_noise(jax.random.fold_in(key, _NOISE), video, is_new, is_history, config.flow)
        control_scale = 1.0 - drop(_MAP, training.drop_map).astype(jnp.float32)
        output = self.model.denoise(
            params, noisy.latents, noisy.timesteps, context,
            control=batch["control"].astype(jnp.float32),
            control_scale=control_scale,
            num_references=num_references,
        )  # fmt: skip
        parametrization = config.flow.parametrization
        loss = diffusion.flow_loss(output, video, noisy, is_new, parametrization)
        sigma = noisy.sigma[..., None, None, None]
        error = jnp.square(parametrization.clean(output, noisy.latents, sigma) - video)[
            :, num_references + num_history :
        ]
        return loss, {"clean_error": jnp.mean(error)}

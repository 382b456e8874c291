"""What the generator is trained for: flow matching of new frames, given the map, the past and the text.

Paper sections 3.2 and 3.3, spec 1.5 to 1.7: stage 1 learns to paint opening clips on the projection, stage 2 adds
history and references. Which of the conditions an example keeps is drawn anew each time it is seen.

A batch has latents, encoded before (`training.examples`), or clips as they were filmed. Of these the projection is
rendered, the references are retrieved and everything is encoded here, inside of the train step, by the functions that
sampling calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from spatia_jax import diffusion
from spatia_jax.data.conditioning import Cut
from spatia_jax.model import Model
from spatia_jax.parallel.sharding import BATCH_AXES
from spatia_jax.pixels import to_signed
from spatia_jax.stages import encode_references, encode_shown, fill
from spatia_jax.training.consistency import pose_error, reprojection_error
from spatia_jax.training.examples import render_clip
from spatia_jax.training.state import Params

_TEXT, _MAP, _REFERENCES, _NOISE, _CONDITIONING, _CONSISTENCY = range(6)  # purposes folded into an example's key


@dataclass(frozen=True)
class GeneratorObjective:
    """Transformer, control branch and text encoder on latents of the frozen autoencoder.

    Attributes:
        networks: that `init` makes; with "lora" among them, it acts in continuing clips, as in sampling.
    """

    model: Model
    networks: tuple[str, ...] = ("transformer", "text_encoder")

    def init(self, key: Array) -> Params:
        keys = jax.random.split(key, len(self.networks))
        return {name: self.model.init(name, k) for name, k in zip(self.networks, keys, strict=True)}

    def loss(self, params: Params, batch: Any, keys: Array) -> tuple[Array, dict[str, Array]]:
        """`batch`: ids and mask [b, l], those of an empty prompt, and either latents or `clip`, a batch of `Cut`.

        Latents are video [b, f, p, q, c] (history, then new), control [b, f, p, q, 2c] and, in continuing clips,
        references [b, k, p, q, c], whose presence tells the two kinds apart. Instead of ids and mask there may be
        text features, context and empty_context [b, l, d].
        """
        config, training = self.model.config, self.model.config.training
        latents = self.encode(params, batch["clip"], keys) if "clip" in batch else batch
        video = latents["video"].astype(jnp.float32)
        opening = "references" not in latents
        num_history = 1 if opening else 1 + (config.clip.history_frames - 1) // config.autoencoder.time_factor
        num_references = 0 if opening else latents["references"].shape[1]
        if not opening:
            references = latents["references"].astype(jnp.float32)
            # A missing reference is the oldest history frame, as in sampling.
            withheld = _chance(keys, _REFERENCES, training.drop_references)[:, None, None, None, None]
            references = jnp.where(withheld, video[:, :1], references)
            video = jnp.concatenate([references, video], axis=1)

        frame = jnp.arange(video.shape[1])
        is_new = frame >= num_references + num_history
        is_history = (frame >= num_references) & ~is_new & (not opening)

        def noised(key: Array, x0: Array) -> diffusion.NoisyLatents:
            alone = diffusion.add_noise(jax.random.fold_in(key, _NOISE), x0[None], is_new, is_history, config.flow)
            return jax.tree.map(lambda leaf: leaf[0], alone)

        noisy = jax.vmap(noised)(keys, video)
        output = self.model.denoise(
            params, noisy.latents, noisy.timesteps, self._context(params, batch, keys),
            control=latents["control"].astype(jnp.float32),
            control_scale=1.0 - _chance(keys, _MAP, training.drop_map).astype(jnp.float32),
            num_references=num_references,
            lora=None if opening else params.get("lora"),
            merge_lora=False,
        )  # fmt: skip
        parametrization = config.flow.parametrization
        loss = diffusion.flow_loss(output, video, noisy, is_new, parametrization)
        sigma = noisy.sigma[..., None, None, None]
        estimate = parametrization.clean(output, noisy.latents, sigma)
        report = {"clean_error": jnp.mean(jnp.square(estimate - video)[:, num_references + num_history :])}
        if training.consistency.used and "clip" in batch:
            painted = jnp.where(is_new[:, None, None, None], estimate, video)[:, num_references:]
            first_new = 1 if opening else config.clip.history_frames
            terms = self._consistency(params, painted, latents, batch["clip"], first_new, keys)
            loss += sum(getattr(training.consistency, name) * value for name, value in terms.items())
            report |= terms
        return loss, report

    def _consistency(
        self, params: Params, painted: Array, latents: dict[str, Any], clips: Cut, first_new: int, keys: Array
    ) -> dict[str, Array]:
        """Means of the terms of `training.consistency` over a batch; noise levels count alike."""
        config, splats = self.model.config.training.consistency, self.model.config.splat
        frames = self.model.reconstruct(params, painted) * 0.5 + 0.5

        def terms(_: Params, row: tuple) -> dict[str, Array]:
            clip, points, frames, key = row
            key, found = jax.random.fold_in(key, _CONSISTENCY), {}
            if config.reprojection:
                found["reprojection"] = reprojection_error(clip, frames, first_new, key, config, splats)
            if config.pose:
                found["pose"] = pose_error(clip, points, frames, first_new, key, config, splats)
            return found

        found = _row_by_row(terms, {}, (clips.clip, latents["point_map"], frames, keys))
        return {name: jnp.mean(values) for name, values in found.items()}

    def _context(self, params: Params, batch: Any, keys: Array) -> Array:
        """Text features, of an empty prompt where the text is dropped."""
        dropped = _chance(keys, _TEXT, self.model.config.training.drop_text)
        if "context" in batch:
            return jnp.where(dropped[:, None, None], batch["empty_context"], batch["context"]).astype(jnp.float32)
        ids, mask = (jnp.where(dropped[:, None], batch[f"empty_{name}"], batch[name]) for name in ("ids", "mask"))
        return self.model.embed_text(params, ids, mask)

    def encode(self, params: Params, clips: Cut, keys: Array) -> dict[str, Any]:
        """Latents of clips: what `training.examples` keeps on disk, made here."""
        painter = {name: params[name] for name in ("inpainter",) if name in params}
        shown = _row_by_row(lambda painter, row: self._show(painter, *row), painter, (clips, keys))
        latents = {
            "video": self.model.encode(params, to_signed(clips.clip.frames)),
            "control": encode_shown(self.model, params, shown["color"], shown["coverage"]),
        }
        if clips.in_bank is not None:
            latents["references"] = encode_references(self.model, params, shown["references"])
        if "point_map" in shown:
            latents["point_map"] = shown["point_map"]
        return jax.tree.map(jax.lax.stop_gradient, latents)

    def _show(self, painter: Params, clip: Cut, key: Array) -> dict[str, Any]:
        """What one clip's cameras see of the map, and its references."""
        example = render_clip(self.model, clip, jax.random.fold_in(key, _CONDITIONING))
        color = fill(self.model, painter, example.projection, example.point_map, example.cameras)
        shown = {"color": color, "coverage": example.projection.coverage, "references": example.references}
        return shown | ({"point_map": example.point_map} if self.model.config.training.consistency.used else {})


def _chance(keys: Array, purpose: int, probability: float) -> Array:
    """[b] bool, each true with `probability`."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, purpose), probability))(keys)


def _row_by_row(function: Callable, params: Params, rows: Any) -> Any:
    """`function(params, row)` for every row of a batch: each device takes its own rows, one after another.

    Sorting and splatting points is not for XLA's partitioner, which would bring the rows together.
    """

    def one_after_another(params: Params, rows: Any) -> Any:
        return jax.lax.map(lambda row: function(params, row), rows)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return one_after_another(params, rows)
    split = PartitionSpec(BATCH_AXES)
    island = jax.shard_map(
        one_after_another, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
    )
    return island(params, rows)

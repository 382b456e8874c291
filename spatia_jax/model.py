"""The networks of an experiment as pure functions of their parameters.

Flax declares the layers; `nnx.split` happens once, here, and from then on parameters are a plain pytree
`{"autoencoder": ..., "transformer": ..., "text_encoder": ..., "depth": ...}`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.config import Experiment
from spatia_jax.mapper.motion_cues import Cues
from spatia_jax.models.autoencoder import Autoencoder
from spatia_jax.models.depth import DepthNetwork
from spatia_jax.models.inpainter import Inpainter
from spatia_jax.models.lora import init_lora
from spatia_jax.models.motion import MotionNetwork
from spatia_jax.models.text_encoder import TextEncoder
from spatia_jax.models.transformer import VideoTransformer
from spatia_jax.parallel import axis_sizes, on_every_device, split_frames
from spatia_jax.pyramid import fill_holes, shrink

Params = Any

_NETWORKS = {
    "autoencoder": Autoencoder,
    "transformer": VideoTransformer,
    "text_encoder": TextEncoder,
    "depth": DepthNetwork,
    "inpainter": Inpainter,
    "motion": MotionNetwork,
}


@dataclass(frozen=True)
class Model:
    """An experiment's networks without their parameters: static and hashable, so it can be closed over by jit."""

    config: Experiment

    def _module(self, name: str, key: Array) -> nnx.Module:
        return _NETWORKS[name](getattr(self.config, name), rngs=nnx.Rngs(key))

    @functools.cached_property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that this experiment has; what moves is only asked where cameras are tracked."""
        unused = () if self.config.mapper.tracking else ("motion",)
        return tuple(
            name for name in _NETWORKS if getattr(self.config, name) is not None and name not in unused
        )  # fmt: skip

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """Keys of the parameters: the networks, and the LoRA if there is one."""
        return (*self.networks, *(("lora",) if self.config.lora else ()))

    @functools.cached_property
    def _graphs(self) -> dict[str, nnx.GraphDef]:
        abstract = {name: nnx.eval_shape(lambda n=name: self._module(n, jax.random.key(0))) for name in self.networks}
        return {name: nnx.split(module)[0] for name, module in abstract.items()}

    def graph(self, name: str) -> nnx.GraphDef:
        """The layers of one network without their parameters, for `nnx.merge`."""
        return self._graphs[name]

    def init(self, name: str, key: Array) -> Params:
        """Fresh parameters of one network, or a LoRA that changes nothing."""
        if name == "lora":
            lora = self.config.lora
            assert lora is not None
            base = nnx.eval_shape(lambda: nnx.state(self._module("transformer", key)))
            return init_lora(base, lora.rank, key, lora.targets)
        return nnx.to_pure_dict(nnx.split(self._module(name, key))[1])

    @functools.cache  # noqa: B019 (models are few, and equal ones share the entry)
    def abstract_params(self) -> Params:
        """Shapes and dtypes of all parameters; costs no memory."""
        return {name: jax.eval_shape(functools.partial(self.init, name), jax.random.key(0)) for name in self.parts}

    def _call(self, name: str, params: Params, method: str, *args, **kwargs):
        graph = self._graphs[name]
        module = nnx.merge(graph, nnx.State(params))
        return getattr(module, method)(*args, **kwargs)

    def _code(self, params: Params, method: str, *args):
        """A method of the autoencoder.

        Where devices share frames, each has all of every kernel: XLA's partitioner (jax 0.10.2) gets convolutions wrong
        whose columns are cut along one axis of the mesh and whose output channels along another.
        """
        whole = params["autoencoder"]
        if axis_sizes().get("context", 1) > 1:
            whole = on_every_device(whole)
        return self._call("autoencoder", whole, method, *args)

    def encode(self, params: Params, video: Float[Array, "b t h w 3"]) -> Float[Array, "b f p q c"]:
        """Video in [-1, 1] to normalised latents, f = 1 + (t - 1) / time_factor.

        Goes through the video in one call or streaming, as `config.autoencoder` says; under a mesh with an axis
        `context`, its devices share every frame.
        """
        method = "encode_streaming" if self.config.autoencoder.streaming else "encode"
        return self._code(params, method, split_frames(video))

    def decode(self, params: Params, latents: Float[Array, "b f p q c"]) -> Float[Array, "b t h w 3"]:
        """Normalised latents to video, clamped to [-1, 1]; streaming and on several devices like `encode`."""
        method = "decode_streaming" if self.config.autoencoder.streaming else "decode"
        return jnp.clip(self._code(params, method, split_frames(latents)), -1.0, 1.0)

    def encode_moments(self, params: Params, video: Float[Array, "b t h w 3"]) -> tuple[Array, Array]:
        """Mean and log variance of the latents, each [b, f, p, q, c]: for training the autoencoder."""
        return self._code(params, "encode_moments", video)

    def reconstruct(self, params: Params, latents: Float[Array, "b f p q c"]) -> Float[Array, "b t h w 3"]:
        """Like `decode`, but in one call and unclamped, so that every pixel has a gradient: for training."""
        return self._code(params, "decode", latents)

    def embed_text(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Token ids to text context; rows after a text's end are zero."""
        return self._call("text_encoder", params["text_encoder"], "__call__", ids, mask)

    def estimate_depth(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        """Metric depth of images in [-1, 1]."""
        return self._call("depth", params["depth"], "__call__", images)

    def inpaint(
        self,
        params: Params,
        color: Float[Array, "b h w 3"],
        coverage: Float[Array, "b h w"],
        panorama: Float[Array, "b r c 5"],
        places: Float[Array, "b y x 2"],
    ) -> Float[Array, "b h w 3"]:
        """Pictures in [0, 1] without holes from pictures premultiplied by coverage; known pixels stay.

        Pull-push filling (`pyramid.fill_holes`), corrected in the holes at the inpainter's own scale. For panorama and
        places see `memory.panoramas` and `memory.places`, these of the view at that scale.
        """
        assert self.config.inpainter is not None
        shown = shrink(color, coverage, self.config.inpainter.scale)
        guess, _ = self.correct_fill(params, *shown, panorama, places)
        guess = jax.image.resize(guess, color.shape, "linear")
        return jnp.clip(fill_holes(color, coverage) + (1 - coverage[..., None]) * guess, 0, 1)

    def correct_fill(
        self,
        params: Params,
        color: Float[Array, "b y x 3"],
        coverage: Float[Array, "b y x"],
        panorama: Float[Array, "b r c 5"],
        places: Float[Array, "b y x 2"],
    ) -> tuple[Float[Array, "b y x 3"], Float[Array, "b y x 3"]]:
        """What the inpainter adds to `fill_holes(color, coverage)`, at its own scale, and the panorama's own guess."""
        return self._call(
            "inpainter", params["inpainter"], "__call__",
            fill_holes(color, coverage), color, coverage, panorama, places,
        )  # fmt: skip

    def find_motion(self, params: Params, cues: Cues) -> Float[Array, "k y x"]:
        """Log odds that the pixels of keyframes, at half their resolution, belong to things that move."""
        return self._call("motion", params["motion"], "__call__", cues.frames, cues.differences, cues.scalars)

    def decode_chunk(self, params: Params, latents: Float[Array, "b f p q c"], carry) -> tuple[Array, list[Array]]:
        """The next frames of one long video, clamped to [-1, 1], and the carry for those after (None at the start)."""
        frames, carry = self._code(params, "decode_chunk", latents, carry)
        return jnp.clip(frames, -1.0, 1.0), carry

    def denoise(self, params: Params, latents, timesteps, context, **conditions) -> Float[Array, "b f p q c"]:
        """One evaluation of the transformer with its control branch and a LoRA (see `VideoTransformer`)."""
        return self._call("transformer", params["transformer"], "__call__", latents, timesteps, context, **conditions)

    def __hash__(self) -> int:
        return hash(self.config)

"""One experiment as one typed value: the configs of the parts, put together and checked against each other.

An experiment is a Python file under `configs/` with a function `experiment() -> Experiment`; any field can be
overridden on the command line (`--clip.references 2`). Checks are made when the value is built, before any compute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spatia_jax.data.conditioning import ConditioningConfig
from spatia_jax.data.procedural import ProceduralConfig
from spatia_jax.diffusion import FlowConfig, SamplerConfig
from spatia_jax.errors import InputError
from spatia_jax.mapper import MapperConfig, TrackingConfig
from spatia_jax.memory import RetrievalConfig
from spatia_jax.models.autoencoder import AutoencoderConfig
from spatia_jax.models.depth import DepthConfig
from spatia_jax.models.inpainter import InpainterConfig
from spatia_jax.models.lora import LoraConfig
from spatia_jax.models.motion import MotionNetworkConfig
from spatia_jax.models.text_encoder import TextEncoderConfig
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.parallel import MeshConfig
from spatia_jax.parallel.checks import check_heads
from spatia_jax.splat import SplatConfig
from spatia_jax.training.consistency import ConsistencyConfig
from spatia_jax.training.options import FitConfig


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a clip (spec 2.2, 2.3). The released setting is 704 x 1248 at 24 fps, 121 then 9 + 72 frames."""

    height: int
    width: int
    fps: int
    opening_frames: int  # of the first clip, the photo included
    new_frames: int  # that each continuing clip adds
    history_frames: int  # clean, at the head of a continuing clip
    references: int  # retrieved frames, one latent each
    target_stride: int  # every n-th view of a clip asks for a reference
    reference_stride: int  # every n-th generated frame enters the frame bank
    text_length: int  # tokens of a prompt

    def __post_init__(self):
        if self.history_frames > self.opening_frames:
            raise InputError(
                f"clip.history_frames is {self.history_frames}; it cannot exceed clip.opening_frames "
                f"({self.opening_frames})"
            )

    @property
    def continuing_frames(self) -> int:
        """Frames that a continuing clip denoises and decodes, history included."""
        return self.history_frames + self.new_frames

    def frames_of(self, clips: int) -> int:
        """Length of a video of so many clips."""
        return self.opening_frames + (clips - 1) * self.new_frames

    def clips_for(self, frames: int) -> int:
        """The number of clips that covers so many frames (the last one may be padded)."""
        return 1 + max(0, -(-(frames - self.opening_frames) // self.new_frames))


@dataclass(frozen=True)
class MemoryConfig:
    """The spatial memory: how large, how fine, how it is asked."""

    capacity: int  # points
    voxel_size: float  # metres (or scene units)
    bank_frames: int  # past frames that can be retrieved
    map_stride: int = 6  # every n-th new frame brings points (the release: 4 frames a second at 24)
    pixel_stride: int = 1  # and of it every n-th pixel in both directions
    retrieval: RetrievalConfig = RetrievalConfig()
    use_map: bool = True  # False: the projection is withheld (the paper's ablation, Table 4)
    use_references: bool = True  # False: likewise the retrieved frames

    def __post_init__(self):
        if self.voxel_size <= 0:
            raise InputError(f"memory.voxel_size is {self.voxel_size}; it must be positive, in metres")
        if self.bank_frames < 1:
            raise InputError(f"memory.bank_frames is {self.bank_frames}; it must be at least 1")


@dataclass(frozen=True)
class TrainingConfig:
    """How each network of the experiment is trained by train.py.

    Attributes:
        mesh: of devices; where `data` is 1, it becomes as many as the devices left and the batch allow.
        latents: where stage 1 and 2 have theirs from: "cached", encoded once and kept on disk, or "on_the_fly": the
            train step renders and encodes each clip anew, with another draw of what the map knows.
        conditioning: what the map of a training clip knows.
        consistency: further terms of the loss of stage 1 and 2, off by default.
    """

    mesh: MeshConfig = MeshConfig()
    latents: Literal["cached", "on_the_fly"] = "cached"
    conditioning: ConditioningConfig = ConditioningConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    autoencoder: FitConfig = FitConfig()
    depth: FitConfig = FitConfig()
    inpainter: FitConfig = FitConfig()
    motion: FitConfig = FitConfig()
    stage1: FitConfig = FitConfig()
    stage2: FitConfig = FitConfig()
    crop: int = 96  # pixels: side of the autoencoder's training crops
    motion_scenes: int = 1000  # drawn and mapped for the motion network (about a second each; see training/motion.py)
    autoencoder_start: Literal["random", "principal"] = "random"  # see training/principal.py
    drop_text: float = 0.1  # probability of an empty prompt
    drop_map: float = 0.1  # probability that the projection is withheld
    drop_references: float = 0.1
    opening_share: float = 0.3  # of the batches of stage 2 that are opening clips

    def __post_init__(self):
        if self.consistency.used and self.latents == "cached":
            raise InputError('training.consistency renders what is painted: it needs training.latents = "on_the_fly"')


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a model, its memory, its sampling and its training."""

    name: str
    clip: ClipConfig
    autoencoder: AutoencoderConfig
    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    depth: DepthConfig
    splat: SplatConfig
    memory: MemoryConfig
    mapper: MapperConfig
    flow: FlowConfig
    sampler: SamplerConfig
    control_scale: float = 1.0  # of the hints; 0 = the projection is ignored
    control_fill: Literal["black", "surroundings", "inpainter"] = "black"  # what the control branch sees in holes
    guidance: float = 3.5  # of the text; 1 = none, and half the compute
    prompt_suffix: str = ""  # follows every prompt, as in training
    lora: LoraConfig | None = None  # of continuing clips
    joint_decode: bool = False  # the video is one causal decoding of all clips' latents, as released; else clip by clip
    release_compatible: bool = False  # with the released pipeline's quirks (release_quirks.py)
    inpainter: InpainterConfig | None = None  # for control_fill = "inpainter"
    motion: MotionNetworkConfig | None = None  # finds what moves where cameras are tracked; None: a rule
    procedural: ProceduralConfig = ProceduralConfig()
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self):
        if self.autoencoder.z_dim != self.transformer.in_dim:
            raise InputError(
                f"autoencoder.z_dim ({self.autoencoder.z_dim}) and transformer.in_dim ({self.transformer.in_dim}) "
                "must be equal"
            )
        time = self.autoencoder.time_factor
        for name in ("opening_frames", "history_frames"):
            frames = getattr(self.clip, name)
            if frames < 1 or (frames - 1) % time:
                raise InputError(
                    f"clip.{name} is {frames}; it must be {time}k + 1 (1, {time + 1}, {2 * time + 1}, ...)"
                )
        if self.clip.new_frames % time or self.clip.new_frames < time:
            raise InputError(f"clip.new_frames is {self.clip.new_frames}; it must be a positive multiple of {time}")
        if (self.control_fill == "inpainter") != (self.inpainter is not None):
            raise InputError('control_fill = "inpainter" needs inpainter = InpainterConfig(...), and nothing else does')
        multiple = self.autoencoder.space_factor * self.transformer.patch_size[1]
        for network in (self.inpainter, self.motion):
            multiple = math.lcm(multiple, network.multiple if network else 1)
        for name in ("height", "width"):
            if getattr(self.clip, name) % multiple:
                raise InputError(f"clip.{name} is {getattr(self.clip, name)}; it must be a multiple of {multiple}")
        if self.text_encoder.dim != self.transformer.text_dim:
            raise InputError(
                f"text_encoder.dim ({self.text_encoder.dim}) and transformer.text_dim "
                f"({self.transformer.text_dim}) must be equal"
            )
        mesh, network = self.training.mesh, self.transformer
        check_heads(network.num_heads, mesh.context if network.sequence_parallel == "ulysses" else 1, mesh.tensor)
        pixels = self.clip.height * self.clip.width
        if self.memory.capacity < pixels:
            raise InputError(
                f"memory.capacity is {self.memory.capacity}; one {self.clip.width} x {self.clip.height} photo alone "
                f"can bring {pixels} points, so it must be at least that"
            )

    def tracked(self) -> Experiment:
        """The same experiment with cameras that are found: its own tracking, or the default."""
        tracking = self.mapper.tracking or TrackingConfig()
        return dataclasses.replace(self, mapper=dataclasses.replace(self.mapper, tracking=tracking))

    def world_fingerprint(self) -> str:
        """A hash of what a saved world's arrays depend on: a world opens only under an equal one."""
        parts = {name: dataclasses.asdict(getattr(self, name)) for name in ("clip", "memory")}
        for name in ("use_map", "use_references", "retrieval"):
            parts["memory"].pop(name)
        return _digest(parts)

    def sampling_fingerprint(self) -> str:
        """A hash of what the programs of sampling depend on: all but what only training reads."""
        parts = dataclasses.asdict(self)
        for name in ("name", "training", "procedural"):
            parts.pop(name)
        return _digest(parts)


def _digest(parts: dict) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_experiment(path: str | Path) -> Experiment:
    """The experiment that a config file defines.

    Raises:
        InputError: no such file, or no `experiment()` in it.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none found here"
        raise InputError(f"no config file {path}; known: {known}")
    spec = importlib.util.spec_from_file_location(f"spatia_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "experiment"):
        raise InputError(f"{path} defines no function experiment() -> Experiment")
    return module.experiment()

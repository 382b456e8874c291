"""The released files in a folder, wherever in it they lie: what is there, what is missing, what is not what it says.

Files are found by what they hold. Their names are used for one thing: a file named like a released one must hold that
network, so that a wrong download is refused instead of passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spatia_jax.errors import InputError
from spatia_jax.weights.checkpoints import Checkpoint, checkpoint_groups, open_checkpoint
from spatia_jax.weights.layouts import Sizes, check, other_size
from spatia_jax.weights.names import Naming, recognise

# Where each part comes from, as it is said to a user who lacks it.
SOURCES = {
    "transformer": "diffusion_pytorch_model*.safetensors of Wan-AI/Wan2.2-TI2V-5B",
    "control": "control_weight_*.safetensors of Jinjing713/Spatia",
    "lora": "lora_weights_*.safetensors of Jinjing713/Spatia",
    "autoencoder": "Wan2.2_VAE.pth of Wan-AI/Wan2.2-TI2V-5B",
    "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth of Wan-AI/Wan2.2-TI2V-5B",
    "depth": "model.safetensors of depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf",
    "tokenizer": "google/umt5-xxl/tokenizer.json of Wan-AI/Wan2.2-TI2V-5B",
}
_NAMED = (
    ("autoencoder", re.compile(r"(.*/)?(Wan2\.\d_VAE\..+|vae/diffusion_pytorch_model.*)")),
    ("text_encoder", re.compile(r"(.*/)?(models_t5_umt5.+|text_encoder/.+)")),
    ("control", re.compile(r"(.*/)?(control_weight.*|step-\d+\..+)")),
    ("lora", re.compile(r"(.*/)?lora_weights.*")),
    ("transformer", re.compile(r"(.*/)?diffusion_pytorch_model.*")),
)
_TOKENIZERS = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True)
class Part:
    """One official checkpoint and the network that it holds."""

    checkpoint: Checkpoint
    naming: Naming

    def tensors(self) -> Mapping[str, np.ndarray]:
        """Views by official name."""
        return {official: self.checkpoint[stored] for official, stored in self.naming.stored.items()}

    def require_fit(self, sizes: Sizes) -> None:
        """Raises InputError listing every missing, unknown, mis-shaped or quantised tensor."""
        if problems := check(self.naming, self.checkpoint, sizes):
            raise InputError(
                f"{self.checkpoint.path}: does not fit the {self.naming.slot} of the config: " + "; ".join(problems)
            )


@dataclass(frozen=True)
class Release:
    """What a folder holds.

    Attributes:
        parts: by slot.
        tokenizer: its file, if there is one.
        passed_over: files that look like checkpoints but are not used, and why.
    """

    folder: Path
    parts: Mapping[str, Part]
    tokenizer: Path | None
    passed_over: Mapping[Path, str]

    def missing(self, slots: Iterable[str]) -> list[str]:
        """Those of `slots` (names.SLOTS and "tokenizer") that are not there."""
        have = {*self.parts, *(["tokenizer"] if self.tokenizer else [])}
        return [slot for slot in slots if slot not in have]

    def require(self, slots: Iterable[str], sizes: Sizes) -> None:
        """Raises InputError unless all `slots` are there and fit `sizes`; lists all that is wrong."""
        slots = list(slots)
        if missing := self.missing(slots):
            lacking = "; ".join(f"{slot} ({SOURCES[slot]})" for slot in missing)
            seen = "; ".join(f"{path.name}: {why}" for path, why in self.passed_over.items())
            raise InputError(f"{self.folder}: missing: {lacking}" + (f". Passed over: {seen}" if seen else ""))
        for slot in slots:
            if slot != "tokenizer":
                self.parts[slot].require_fit(sizes)


def find_release(folder: str | Path, sizes: Sizes) -> Release:
    """Looks through a folder and all below it, hidden ones excepted; opens headers only.

    Raises:
        InputError: no such folder; a file named like a released one is broken or holds something else, or the network
            in another size; or one network is there twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of downloaded weights")
    parts: dict[str, Part] = {}
    passed_over: dict[Path, str] = {}
    tokenizers = []
    for directory in _directories(folder):
        tokenizers += [directory / name for name in _TOKENIZERS if (directory / name).is_file()]
        for path in checkpoint_groups(directory):
            part = _open_part(path, path.relative_to(folder).as_posix(), sizes, passed_over)
            if part is None:
                continue
            slot = part.naming.slot
            if slot in parts:
                raise InputError(
                    f"{folder}: the {slot} is there twice: {parts[slot].checkpoint.path} and {part.checkpoint.path}; "
                    "give a folder with one of them"
                )
            parts[slot] = part
    tokenizers.sort(key=lambda file: (_TOKENIZERS.index(file.name), len(file.parts), file))
    return Release(folder, parts, tokenizers[0] if tokenizers else None, passed_over)


def _directories(folder: Path) -> list[Path]:
    """`folder` and all below it, each once, whatever links lead where."""
    found: dict[str, Path] = {}
    for root, directories, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        directories[:] = [] if real in found else sorted(name for name in directories if not name.startswith("."))
        found.setdefault(real, Path(root))
    return list(found.values())


def _open_part(path: Path, relative: str, sizes: Sizes, passed_over: dict[Path, str]) -> Part | None:
    """The checkpoint at `path`; None (and a note why) when it is nothing of ours and is not named as if it were."""
    named = next((slot for slot, pattern in _NAMED if pattern.fullmatch(relative)), None)
    try:
        checkpoint = open_checkpoint(path)
    except InputError as error:
        if named:
            raise
        passed_over[path] = str(error).removeprefix(f"{path}: ")
        return None
    naming = recognise(checkpoint)
    if naming is None or (named and naming.slot != named):
        holds = f"holds the {naming.slot}" if naming else "its tensors are of no network of ours"
        if not named:
            passed_over[path] = holds
            return None
        raise InputError(f"{path}: is named like the {named} ({SOURCES[named]}), but {holds}")
    part = Part(checkpoint, naming)
    if other := other_size(naming.slot, part.tensors(), sizes):
        raise InputError(f"{path}: {other}")
    return part

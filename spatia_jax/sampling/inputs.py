"""Reads and checks everything that a person gives, before any network runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from spatia_jax.cameras import Cameras, parse_path, read_cameras
from spatia_jax.cameras.formats import read_intrinsics
from spatia_jax.config import Experiment
from spatia_jax.errors import InputError
from spatia_jax.io.images import adjust_intrinsics, fit_image, fit_map, read_depth, read_image, read_mask

Say = Callable[[str], None]


@dataclass(frozen=True)
class View:
    """One picture at the door, fitted to the clip's size.

    Attributes:
        photo: [h, w, 3] uint8.
        depth: [h, w] metres, 0 where unknown, or None: to be estimated.
        moving: [h, w] bool.
        camera: Cameras of shape ().
    """

    photo: np.ndarray
    depth: np.ndarray | None
    moving: np.ndarray
    camera: Cameras


@dataclass(frozen=True)
class Inputs:
    """What the user gave, read and checked.

    Attributes:
        views: the photo, or the frames of a posed sequence; the last one is where the video starts.
        cameras: the whole path, or None where `path` says it in words.
        path: words of the path language.
        prompts: one for each clip.
        moving: [n, h, w] bool for frames to come (n may be 0).
        clips: how many.
        files: name -> file, for the manifest.
    """

    views: list[View]
    cameras: Cameras | None
    path: str | None
    prompts: list[str]
    moving: np.ndarray
    clips: int
    files: dict[str, Path]


def read_view(
    config: Experiment, image: Path, depth: Path | None, mask: Path | None, intrinsics: np.ndarray, say: Say
) -> tuple[View, np.ndarray]:
    """A picture with what is known about it. `intrinsics` are those of the file, normalised [4].

    Returns the view at the world's origin, and the masks of all frames that the mask file holds, fitted.
    """
    height, width = config.clip.height, config.clip.width
    original = read_image(image)
    photo, crop = fit_image(original, height, width)
    if crop.original != crop.size:
        say(f"{image.name}: {crop}")
    size = original.shape[:2]
    known = None if depth is None else fit_map(read_depth(depth, size), height, width)
    masks = np.zeros((1, height, width), bool) if mask is None else fit_map(read_mask(mask, size), height, width)
    camera = Cameras(jnp.eye(4)[:3], jnp.asarray(adjust_intrinsics(intrinsics, crop)))
    return View(photo, known, masks[0], camera), masks


def default_intrinsics(field_of_view: float, size: tuple[int, int]) -> np.ndarray:
    """Normalised intrinsics [4] of a centred pinhole with square pixels; `field_of_view` is horizontal, in degrees."""
    if not 5 <= field_of_view <= 150:
        raise InputError(f"--fov is {field_of_view}; a horizontal field of view lies between 5 and 150 degrees")
    focal = 0.5 / np.tan(np.radians(field_of_view) / 2)
    height, width = size
    return np.array([focal, focal * width / height, 0.5, 0.5], np.float32)


def fit_cameras(cameras: Cameras, size: tuple[int, int], config: Experiment) -> Cameras:
    """Cameras of a picture of `size` (height, width) as those of its fitted version."""
    _, crop = fit_image(np.zeros((*size, 3), np.uint8), config.clip.height, config.clip.width)
    return Cameras(cameras.cam_from_world, jnp.asarray(adjust_intrinsics(cameras.intrinsics, crop)))


def read_path(
    cameras: Path | None, intrinsics: Path | None, path: str | None, size: tuple[int, int], field_of_view: float
) -> tuple[Cameras | None, np.ndarray]:
    """The camera file if one is given, and the intrinsics of the photo, both before the photo is fitted.

    Raises:
        InputError: both a file and words, or words that the path language does not know.
    """
    if cameras is not None and path is not None:
        raise InputError("give either --cameras FILE or --path WORDS, not both")
    if intrinsics is None and cameras is not None and (cameras.parent / "intrinsics.txt").is_file():
        intrinsics = cameras.parent / "intrinsics.txt"
    if cameras is not None:
        views = read_cameras(cameras, intrinsics=intrinsics, image_size=size)
        return views, np.asarray(views.intrinsics[0])
    given = default_intrinsics(field_of_view, size) if intrinsics is None else np.asarray(read_intrinsics(intrinsics))
    given = given.reshape(-1, 4)[0]
    if path is not None:  # complain about its words now, not after the networks are loaded
        parse_path(path, Cameras(jnp.eye(4)[:3], jnp.asarray(given)), 2, 1.0)
    return None, given


def read_prompts(prompt: tuple[str, ...], file: Path | None, clips: int, say: Say) -> list[str]:
    """One prompt for each clip: the last one is repeated if there are too few, extra ones are left out (spec 2.2)."""
    if prompt and file is not None:
        raise InputError("give either --prompt or --prompts FILE, not both")
    lines = list(prompt)
    if file is not None:
        if not file.is_file():
            raise InputError(f"{file}: no such prompt file; it holds one prompt a line, one line a clip")
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
        if not lines:
            raise InputError(f"{file}: the prompt file is empty; it holds one prompt a line, one line a clip")
    if any(not line.strip() for line in lines):
        raise InputError("--prompt is empty; describe the place, or leave the option out")
    lines = lines or [""]
    if len(lines) > clips:
        say(f"{len(lines)} prompts for {clips} clips: the last {len(lines) - clips} are not used")
    return (lines + [lines[-1]] * clips)[:clips]


def fit_length(cameras: Cameras, config: Experiment, clips: int | None, say: Say) -> tuple[Cameras, int, int]:
    """A camera path cut or padded to whole clips.

    Returns: the padded path, the number of clips, and how many frames of the video were asked for (the rest is padding,
    made by repeating the last pose, and cut from the video).
    """
    asked = len(cameras)
    if asked < 2:
        raise InputError(f"a camera path needs at least 2 views, this one has {asked}")
    needed = config.clip.clips_for(asked)
    if clips is not None and clips < needed:
        asked, needed = config.clip.frames_of(clips), clips
        say(f"{len(cameras)} cameras, cut to the {asked} of {clips} clips")
    elif clips is not None and clips > needed:
        raise InputError(
            f"{asked} cameras make {needed} clips, --clips asks for {clips}, which need "
            f"{config.clip.frames_of(clips - 1) + 1} or more"
        )
    total = config.clip.frames_of(needed)
    index = np.minimum(np.arange(total), asked - 1)
    return cameras[index], needed, asked


def split_path(cameras: Cameras, config: Experiment) -> list[Cameras]:
    """A path of whole clips, cut into the cameras that each clip adds."""
    bounds = [0] + [config.clip.frames_of(k + 1) for k in range(config.clip.clips_for(len(cameras)))]
    return [cameras[first:last] for first, last in zip(bounds[:-1], bounds[1:], strict=True)]


def split_masks(masks: np.ndarray, frames: int, config: Experiment) -> list[Array]:
    """Masks of moving things [n, h, w] for each clip's frames; frames without one get an empty mask."""
    full = np.zeros((frames, config.clip.height, config.clip.width), bool)
    full[: min(len(masks), frames)] = masks[:frames]
    bounds = [0] + [config.clip.frames_of(k + 1) for k in range(config.clip.clips_for(frames))]
    return [jnp.asarray(full[first:last]) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]

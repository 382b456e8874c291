"""Reads and checks everything that a person gives, before any network runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from spatia_jax.cameras import Cameras, default_intrinsics, parse_path, read_cameras
from spatia_jax.cameras.formats import read_intrinsics
from spatia_jax.config import ClipConfig, Experiment
from spatia_jax.errors import InputError
from spatia_jax.io.images import adjust_intrinsics, fit_image, fit_map, read_depth, read_image, read_mask

Say = Callable[[str], None]

# The photo that is used when none is given: scene 106 of the held-out ones of the procedural world, and its caption.
EMBEDDED_PHOTO = Path(str(resources.files("spatia_jax"))) / "assets" / "photo.png"
EMBEDDED_FOV = 71.2
EMBEDDED_PROMPT = "a courtyard with plaster walls and a stone floor, an orange desk, a brown ball and a green plant"


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
        title: for the report.
        views: the photo, or the frames of a posed sequence; the video starts at the last one. Empty when a saved world
            goes on.
        cameras: the whole path, or None where it is said in words.
        path: words of the path language, or None.
        moving: [n, h, w] bool for the first n frames (n may be 0).
        files: name -> file, for the manifest.
        default_prompt: what is used where the user gave no prompt.
    """

    title: str
    views: list[View]
    cameras: Cameras | None
    path: str | None
    moving: np.ndarray
    files: dict[str, Path]
    default_prompt: tuple[str, ...] = ()


def photo_inputs(args, say: Say) -> Inputs:
    """Inputs of a world that starts from one photo (`SampleArgs`)."""
    embedded = args.image is None
    if embedded and (args.depth is not None or args.mask is not None):
        raise InputError("--depth and --mask belong to an --image; give that too")
    image = EMBEDDED_PHOTO if embedded else args.image
    fov = EMBEDDED_FOV if embedded and args.fov is None else args.fov
    original = read_image(image)
    size = original.shape[:2]
    cameras, intrinsics = read_path(args.cameras, args.intrinsics, args.path, size, fov)
    photo, crop = fit_image(original, args.experiment.clip.height, args.experiment.clip.width)
    if crop.original != crop.size:
        say(f"{image.name}: {crop}")
    depth = None if args.depth is None else fit_map(read_depth(args.depth, size), *crop.size)
    masks = np.zeros((1, *crop.size), bool) if args.mask is None else fit_map(read_mask(args.mask, size), *crop.size)
    if cameras is not None:
        cameras = Cameras(cameras.cam_from_world, jnp.asarray(adjust_intrinsics(np.asarray(cameras.intrinsics), crop)))
    pose = jnp.eye(3, 4) if cameras is None else cameras.cam_from_world[0]
    view = View(photo, depth, masks[0], Cameras(pose, jnp.asarray(adjust_intrinsics(intrinsics, crop))))
    prompt = (EMBEDDED_PROMPT,) if embedded else ()
    return Inputs(image.stem, [view], cameras, args.path, masks, _files(args, image=image), prompt)


def sequence_inputs(args, say: Say) -> Inputs:
    """Inputs of a world that starts from a folder of posed frames, with depth or without (7-Scenes layout)."""
    for name in ("depth", "mask"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name} belongs to an --image; the frames of a --sequence bring their own depth")
    images = sorted(path for path in Path(args.sequence).glob("frame-*.color.*"))
    if not images:
        raise InputError(f"--sequence {args.sequence}: no frame-*.color.jpg or .png in it (7-Scenes layout)")
    images = images[:: args.every]
    size = read_image(images[0]).shape[:2]
    poses = read_cameras(args.sequence, image_size=size)
    numbers = sorted(path.name.split(".")[0] for path in Path(args.sequence).glob("frame-*.color.*"))
    height, width = args.experiment.clip.height, args.experiment.clip.width
    views = []
    for image in images:
        original = read_image(image)
        if original.shape[:2] != size:
            raise InputError(
                f"{image}: is {original.shape[1]}x{original.shape[0]}, the first frame {size[1]}x{size[0]}"
            )
        photo, crop = fit_image(original, height, width)
        depth_file = image.with_name(image.name.split(".")[0] + ".depth.png")
        depth = fit_map(read_depth(depth_file, size), height, width) if depth_file.is_file() else None
        camera = poses[numbers.index(image.name.split(".")[0])]
        camera = Cameras(camera.cam_from_world, jnp.asarray(adjust_intrinsics(np.asarray(camera.intrinsics), crop)))
        views.append(View(photo, depth, np.zeros((height, width), bool), camera))
    say(f"{args.sequence.name}: {len(views)} posed frames, {crop}; the video starts at {images[-1].name}")
    cameras, _ = read_path(args.cameras, args.intrinsics, args.path, size, args.fov)
    if cameras is not None:
        cameras = Cameras(cameras.cam_from_world, jnp.asarray(adjust_intrinsics(np.asarray(cameras.intrinsics), crop)))
    none = np.zeros((0, height, width), bool)
    return Inputs(args.sequence.name, views, cameras, args.path, none, _files(args, sequence=args.sequence))


def continue_inputs(args) -> Inputs:
    """Inputs of a run that goes on from a saved world: only a path, and what moves, are read."""
    for name in ("depth", "mask"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name} belongs to an --image; a saved world brings its own map")
    clip = args.experiment.clip
    cameras, _ = read_path(args.cameras, args.intrinsics, args.path, (clip.height, clip.width), args.fov)
    none = np.zeros((0, clip.height, clip.width), bool)
    return Inputs(args.from_world.name, [], cameras, args.path, none, _files(args, from_world=args.from_world))


def _files(args, **more: Path) -> dict[str, Path]:
    named = {name: getattr(args, name) for name in ("depth", "mask", "cameras", "intrinsics", "prompts")}
    return more | {name: path for name, path in named.items() if path is not None}


def read_path(
    cameras: Path | None, intrinsics: Path | None, path: str | None, size: tuple[int, int], field_of_view: float | None
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


def read_prompts(prompt: tuple[str, ...], file: Path | None) -> list[str]:
    """The prompts that were given on the command line or in a file, at least one; "" where nothing was said."""
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
    return lines or [""]


def fit_prompts(prompts: list[str], clips: int, say: Say) -> list[str]:
    """One prompt for each clip: the last one is repeated if there are too few, extra ones are left out (spec 2.2)."""
    if len(prompts) > clips:
        say(f"{len(prompts)} prompts for {clips} clips: the last {len(prompts) - clips} are not used")
    return (prompts + [prompts[-1]] * clips)[:clips]


def fit_length(
    cameras: Cameras, config: Experiment, clips: int | None, *, continuing: bool, say: Say
) -> tuple[Cameras, int, int]:
    """A camera path cut or padded to whole clips.

    Returns: the padded path, the number of clips, and how many frames the video shall have: padding, made by repeating
    the last pose, is generated but left out of the video.
    """
    asked, clip = len(cameras), config.clip
    if asked < 2:
        raise InputError(f"a camera path needs at least 2 views, this one has {asked}")
    needed = -(-asked // clip.new_frames) if continuing else clip.clips_for(asked)

    def frames_of(count: int) -> int:
        return count * clip.new_frames if continuing else clip.frames_of(count)

    if clips is not None and clips > needed:
        raise InputError(
            f"{asked} cameras make {needed} clips; --clips {clips} would need more than {frames_of(clips - 1)} cameras"
        )
    if clips is not None and clips < needed:
        say(f"{asked} cameras, cut to the {frames_of(clips)} of {clips} clips")
        asked, needed = frames_of(clips), clips
    index = np.minimum(np.arange(frames_of(needed)), asked - 1)
    return cameras[index], needed, asked


def split_path(cameras: Cameras, clip: ClipConfig, *, opening: bool) -> list[Cameras]:
    """A path of whole clips, cut into the cameras that each clip adds."""
    return [cameras[first:last] for first, last in _bounds(len(cameras), clip, opening)]


def split_masks(masks: np.ndarray, cameras: Cameras, clip: ClipConfig, *, opening: bool) -> list[Array]:
    """Masks of moving things [n, h, w] for each clip's frames; frames without one get an empty mask."""
    full = np.zeros((len(cameras), clip.height, clip.width), bool)
    full[: len(masks)] = masks[: len(full)]
    return [jnp.asarray(full[first:last]) for first, last in _bounds(len(cameras), clip, opening)]


def _bounds(frames: int, clip: ClipConfig, opening: bool) -> list[tuple[int, int]]:
    starts = [0, *range(clip.opening_frames, frames, clip.new_frames)] if opening else range(0, frames, clip.new_frames)
    return list(zip(starts, [*list(starts)[1:], frames], strict=True))

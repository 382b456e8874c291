"""Images, depth maps and masks at the door: whatever the file holds becomes one plain array, or one clear line.

Sizes are (height, width). An image of another size is resized to cover the wanted one and cropped at the centre, in
one resampling of a fractional box, so that the intrinsics follow exactly.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write

Size = tuple[int, int]

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_NO_READING = 65535  # what depth cameras write, besides 0, where they saw nothing


@dataclass(frozen=True)
class Crop:
    """The box of an image of size `original` that was resampled to `size`: (top, left, height, width) in its pixels."""

    original: Size
    size: Size

    @property
    def box(self) -> tuple[float, float, float, float]:
        scale = max(self.size[0] / self.original[0], self.size[1] / self.original[1])
        height, width = self.size[0] / scale, self.size[1] / scale
        return (self.original[0] - height) / 2, (self.original[1] - width) / 2, height, width

    def __str__(self) -> str:
        top, left, height, width = self.box
        text = f"{self.original[1]}x{self.original[0]} resized to {self.size[1]}x{self.size[0]} (width x height)"
        lost = 1 - height * width / (self.original[0] * self.original[1])
        if lost < 1e-6:
            return text
        side, pixels = ("top and bottom", top) if top > left else ("left and right", left)
        return f"{text}, with {pixels:.0f} pixels cut off at the {side} ({lost:.0%} of the picture)"


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Any picture that Pillow opens, upright (EXIF), as RGB; 16 bits become 8, transparency is laid on white."""
    image = ImageOps.exif_transpose(_open(path))
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_eight_bits(np.asarray(image), path)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_depth(path: str | os.PathLike, size: Size | None = None) -> Float[np.ndarray, "h w"]:
    """Depth along the optical axis in metres, 0 where there is no reading.

    A PNG of 16 bits holds millimetres (0 and 65535: no reading); a .npy or one-array .npz holds metres (anything not
    finite or not positive: no reading). Raises InputError when unreadable or not of `size`.
    """
    if Path(path).suffix in (".npy", ".npz"):
        depth = _load_array(path)
    else:
        image = _open(path)
        if not image.mode.startswith("I"):
            raise InputError(
                f"{path}: a depth image must be a 16-bit PNG in millimetres, this one has mode {image.mode}"
            )
        millimetres = np.asarray(image)
        depth = np.where(millimetres == _NO_READING, 0, millimetres) / 1000
    if depth.ndim != 2:
        raise InputError(f"{path}: depth must be height x width, this one has shape {depth.shape}")
    _require_size(path, "depth", depth.shape, size)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    if not depth.any():
        raise InputError(f"{path}: no pixel of this depth has a reading (all are 0, 65535, negative or not finite)")
    return depth


def read_mask(path: str | os.PathLike, size: Size | None = None) -> Bool[np.ndarray, "n h w"]:
    """Masks of one picture (n = 1, from an image file: brighter than half) or of n frames (.npy, n x h x w)."""
    if Path(path).suffix in (".npy", ".npz"):
        mask = _load_array(path)
        mask = mask > mask.max(initial=0) / 2  # serves 0/1, 0/255, booleans and probabilities alike
    else:
        mask = read_image(path).max(axis=-1) > 127
    if mask.ndim not in (2, 3):
        raise InputError(f"{path}: a mask must be height x width or frames x height x width, not {mask.shape}")
    mask = mask.reshape(-1, *mask.shape[-2:])
    _require_size(path, "mask", mask.shape[1:], size)
    return mask


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 [h, w, 3], uint8 [h, w], bool [h, w] or uint16 [h, w] (depth in millimetres), atomically."""
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def fit_image(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> tuple[UInt8[np.ndarray, "y x 3"], Crop]:
    """Resizes to cover height x width and crops at the centre; `str(crop)` says what was done."""
    crop = Crop(image.shape[:2], (height, width))
    return np.array(_resample(Image.fromarray(image), crop, Image.Resampling.LANCZOS)), crop


def fit_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """`fit_image` for depth or a mask [..., h, w]: nearest sample, since values across an edge must not mix."""
    top, left, box_height, box_width = Crop(values.shape[-2:], (height, width)).box
    rows = (top + (np.arange(height) + 0.5) * box_height / height).astype(int)
    columns = (left + (np.arange(width) + 0.5) * box_width / width).astype(int)
    return values[..., rows[:, None], columns]


def adjust_intrinsics(intrinsics: Float[np.ndarray, "*v 4"], crop: Crop) -> Float[np.ndarray, "*v 4"]:
    """Normalised (fx, fy, cx, cy) of the original image -> those of the cropped one."""
    top, left, box_height, box_width = crop.box
    height, width = crop.original
    scale = np.array([width / box_width, height / box_height] * 2)
    offset = np.array([0, 0, left / box_width, top / box_height])
    return (np.asarray(intrinsics) * scale - offset).astype(np.float32)


def _open(path: str | os.PathLike) -> Image.Image:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such image file")
    try:
        image = Image.open(path)
        image.load()
    except _UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error
    return image


def _load_array(path: str | os.PathLike) -> np.ndarray:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such array file")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (*_UNREADABLE, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a NumPy array ({error})") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    if len(loaded.files) != 1:
        raise InputError(f"{path}: must hold one array, holds {len(loaded.files)} ({', '.join(loaded.files)})")
    return loaded[loaded.files[0]]


def _eight_bits(grey: np.ndarray, path: str | os.PathLike) -> UInt8[np.ndarray, "h w"]:
    if grey.min() < 0 or grey.max() > 65535 or not np.issubdtype(grey.dtype, np.integer):
        raise InputError(f"{path}: grey values must be 8 or 16 bits, these run from {grey.min()} to {grey.max()}")
    return np.round(grey / 257).astype(np.uint8)


def _require_size(path: str | os.PathLike, what: str, size: Size, wanted: Size | None) -> None:
    if wanted is not None and tuple(size) != tuple(wanted):
        is_size, must_be = f"{size[1]}x{size[0]}", f"{wanted[1]}x{wanted[0]}"
        raise InputError(f"{path}: the {what} is {is_size} (width x height), the image it belongs to {must_be}")


def _resample(image: Image.Image, crop: Crop, method: Image.Resampling) -> Image.Image:
    top, left, height, width = crop.box
    return image.resize(crop.size[::-1], method, box=(left, top, left + width, top + height))

"""Video files: outputs of the program, and posed clips as inputs. Between stages nothing passes through here."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import UInt8

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write

_CODEC = "libx264"


def write_video(path: str | os.PathLike, frames: UInt8[np.ndarray, "t h w 3"], fps: float, crf: int = 16) -> None:
    """Writes H.264 (yuv420p, BT.709, readable by every browser), atomically.

    `crf` is x264's constant rate factor: 0 lossless, 16 visually so. yuv420p wants even sizes, so a last odd row or
    column is repeated once.
    """
    if _CODEC not in av.codecs_available:
        raise InputError(
            f"{path}: this PyAV build has no {_CODEC} encoder; install the wheel from PyPI (pip install av)"
        )
    if len(frames) == 0:
        raise InputError(f"{path}: a video needs at least one frame")
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic_write(path) as temporary, av.open(temporary, "w", options={"movflags": "+faststart"}) as container:
        stream = cast(
            av.VideoStream,
            container.add_stream(_CODEC, rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)}),
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_video(path: str | os.PathLike) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """All frames of the first video stream, and the frames per second. Raises InputError when unreadable."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such video file")
    try:
        with av.open(path, "r") as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            fps = float(stream.average_rate or 0)
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video ({error.strerror})") from error
    if not frames:
        raise InputError(f"{path}: holds no frame")
    return np.stack(frames), fps

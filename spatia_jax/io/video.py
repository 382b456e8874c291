"""Video files: outputs of the program, and posed clips as inputs. Between stages nothing passes through here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
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


@dataclass(frozen=True)
class VideoFacts:
    """What a video file says of itself: how many pictures, how many a second (0: unknown), and (height, width)."""

    frames: int
    fps: float
    size: tuple[int, int]


def probe_video(path: str | os.PathLike) -> VideoFacts:
    """Counts pictures without decoding them. Raises InputError when unreadable, or when some of them are missing."""
    with _opened(path) as (container, stream):
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        if frames < stream.frames:
            raise InputError(f"{path}: is damaged, it holds {frames} of its {stream.frames} frames")
        return VideoFacts(frames, float(stream.average_rate or 0), (stream.height, stream.width))


def iterate_video(path: str | os.PathLike) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Frames of the first video stream, one at a time. Raises InputError when unreadable, also on the way."""
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


def frames_at(path: str | os.PathLike, seconds: Sequence[float]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frame nearest to each of these times (rising), for a part of a long video: it starts at a seek.

    Raises InputError when unreadable, or when the video ends more than half a second before a time.
    """
    with _opened(path) as (container, stream):
        container.seek(max(int(seconds[0] * 1_000_000) - 1, 0))
        decoded = ((float(frame.time or 0), frame) for frame in container.decode(stream))
        before = after = next(decoded, None)
        for time in seconds:
            while after is not None and after[0] < time:
                before, after = after, next(decoded, None)
            found = min((f for f in (before, after) if f is not None), key=lambda f: abs(f[0] - time), default=None)
            if found is None or abs(found[0] - time) > 0.5:
                raise InputError(f"{path}: has no frame at {time:.2f} s; it ends before")
            yield found[1].to_ndarray(format="rgb24")


def read_video(path: str | os.PathLike) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """All frames of the first video stream, and the frames per second. Raises InputError when unreadable."""
    with _opened(path) as (_, stream):
        fps = float(stream.average_rate or 0)
    frames = list(iterate_video(path))
    if not frames:
        raise InputError(f"{path}: holds no frame")
    return np.stack(frames), fps


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such video file")
    try:
        with av.open(path, "r") as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video ({error.strerror})") from error

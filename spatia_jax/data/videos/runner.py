"""Prepares many videos: one after another, in several processes, or on an Apache Beam cluster.

What is done lies on the disk and nowhere else: a file of clips for every finished video, a note for every rejected one.
So any number of workers share the work, a run that was killed goes on with what is missing, and rejected videos are
looked at again, since somebody may have mended them.

    DIR/settings.json          with which it was begun; others need another folder
    DIR/videos/SPLIT/NAME.npz  clips of a finished video
    DIR/rejected/NAME.json     why a video was not used; gathered in DIR/rejected.jsonl
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spatia_jax.data.videos.footage import Item
from spatia_jax.data.videos.preprocess import DepthNetwork, PrepareConfig, prepare
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write, write_json

Say = Callable[[str], None]
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)  # what a damaged file raises deep inside
_INSTALL_BEAM = "Apache Beam is not installed: pip install 'spatia-jax[beam]' (or prepare with --workers)"


@dataclass(frozen=True)
class Job:
    """What is done to every video, and where to; picklable, for workers elsewhere.

    Attributes:
        extend: adds features to a finished record (cached latents); None: nothing.
    """

    layout: str
    config: PrepareConfig
    folder: Path
    network: DepthNetwork | None = None
    extend: Callable[[dict], dict] | None = None


def run(
    job: Job, items: Sequence[Item], *, workers: int = 1, beam_options: list[str] | None = None, say: Say = print
) -> tuple[list[str], list[str]]:
    """Prepares the videos that are not finished yet.

    Args:
        workers: processes, without Beam.
        beam_options: run as a Beam pipeline with these options ([]: Beam's DirectRunner); None: without Beam.

    Returns: (finished, rejected) of `items`, names of videos.

    Raises:
        InputError: the folder was begun with other settings, or Beam is asked for and missing.
    """
    if beam_options is not None:
        import_beam()
    _settle(job)
    todo = [item for item in items if not record_file(job.folder, item).exists()]
    if len(todo) < len(items):
        say(f"{len(items) - len(todo)} of {len(items)} videos are prepared already")
    if beam_options is not None:
        _run_beam(job, todo, beam_options)
    elif workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            _follow(pool.imap_unordered(partial(prepare_video, job), todo), len(todo), say)
    else:
        _follow(map(partial(prepare_video, job), todo), len(todo), say)
    return _collect(job.folder, items)


def prepare_video(job: Job, item: Item) -> str:
    """One video, to a file of its clips or a note why not; returns a line that says which."""
    note = _note(job.folder, item)
    try:
        records = list(prepare(item, job.layout, job.config, job.network))
        if job.extend is not None:
            records = [record | job.extend(record) for record in records]
    except (InputError, *_UNREADABLE) as error:
        reason = str(error) if isinstance(error, InputError) else f"{item.path}: cannot be read ({error})"
        write_json(note, {"video": item.name, "path": str(item.path), "reason": reason})
        return f"{item.name}: rejected: {reason}"
    members = {f"{i:04d}/{name}": value for i, record in enumerate(records) for name, value in record.items()}
    with atomic_write(record_file(job.folder, item)) as temporary:
        np.savez(temporary, **members)
    note.unlink(missing_ok=True)
    return f"{item.name}: {len(records)} clips"


def read_clips(path: Path) -> Iterator[dict]:
    """The records of a finished video, one at a time."""
    with np.load(path, allow_pickle=False) as held:
        numbers = sorted({name.partition("/")[0] for name in held.files})
        for number in numbers:
            names = [name for name in held.files if name.startswith(f"{number}/")]
            record: dict[str, Any] = {name.partition("/")[2]: held[name] for name in names}
            yield {name: str(value) if value.dtype.kind == "U" else value for name, value in record.items()}


def record_file(folder: Path, item: Item) -> Path:
    """Where the clips of a video are kept."""
    return folder / "videos" / item.split / f"{item.name}.npz"


def finished_files(folder: Path) -> dict[str, list[Path]]:
    """Files of finished videos by split, in order."""
    splits = sorted(path for path in (folder / "videos").glob("*") if path.is_dir())
    files = {split.name: sorted(split.rglob("*.npz")) for split in splits}
    return {name: [file for file in held if not file.name.startswith(".")] for name, held in files.items()}


def import_beam() -> Any:
    """Apache Beam; InputError that says how to install it."""
    try:
        import apache_beam
    except ImportError:
        raise InputError(_INSTALL_BEAM) from None
    return apache_beam


def _run_beam(job: Job, items: Sequence[Item], options: list[str]) -> None:
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    if not items:
        return
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = (
            pipeline
            | "Videos" >> beam.Create(list(items))
            | "Spread" >> beam.Reshuffle()
            | "Prepare" >> beam.Map(partial(prepare_video, job))
        )


def _follow(lines, count: int, say: Say) -> None:
    for number, line in enumerate(lines, 1):
        say(f"[{number}/{count}] {line}")


def _note(folder: Path, item: Item) -> Path:
    return folder / "rejected" / f"{item.name}.json"


def _settle(job: Job) -> None:
    """Writes the settings, or checks that they are those with which the folder was begun."""
    file = job.folder / "settings.json"
    settings = {"layout": job.layout, "network": str(job.network), "extend": str(job.extend)}
    settings |= json.loads(json.dumps(dataclasses.asdict(job.config), default=str))
    if not file.exists():
        write_json(file, settings)
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    other = [f"{name} {begun.get(name)} (now {value})" for name, value in settings.items() if begun.get(name) != value]
    if other:
        raise InputError(f"{job.folder}: was begun with {', '.join(other)}; give a new --output, or the same settings")


def _collect(folder: Path, items: Sequence[Item]) -> tuple[list[str], list[str]]:
    """The names of finished and rejected videos; writes the list of the latter, which says why."""
    finished = [item.name for item in items if record_file(folder, item).exists()]
    notes = [note for note in (_note(folder, item) for item in items) if note.exists()]
    lines = [json.dumps(json.loads(note.read_text(encoding="utf-8"))) for note in notes]
    with atomic_write(folder / "rejected.jsonl") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return finished, [json.loads(line)["video"] for line in lines]

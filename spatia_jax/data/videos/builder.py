"""Prepared videos as a TFDS data set of ArrayRecord files, read like the procedural world's; needs no TensorFlow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from spatia_jax.data.videos.runner import finished_files, import_beam, read_clips
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import write_json

_NAME = "prepared_videos"


class PreparedVideos(tfds.core.GeneratorBasedBuilder):
    """Clips of the finished videos of a folder, by split; the features are those of its records."""

    VERSION = tfds.core.Version("1.0.0")
    name = _NAME

    def __init__(self, folder: Path, *, beam: bool = False, **kwargs):
        self.files = {split: files for split, files in finished_files(folder).items() if files}
        if not self.files:
            raise InputError(f"{folder}: no video was prepared; see {folder / 'rejected.jsonl'}")
        self.beam = beam
        super().__init__(data_dir=str(folder / "tfds"), file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        sample = next(read_clips(next(iter(self.files.values()))[0]))
        features = {name: _feature(name, value) for name, value in sample.items()}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(files) for split, files in self.files.items()}

    def _generate_examples(self, files: list[Path]) -> Any:
        if self.beam:
            beam = import_beam()
            return beam.Create(files) | beam.Reshuffle() | beam.FlatMap(_examples)
        return (example for file in files for example in _examples(file))


def gather(folder: Path, beam_options: list[str] | None = None) -> dict[str, int]:
    """Writes `folder/tfds` from all finished videos, anew if there are others than before.

    Returns: the number of clips of each split.
    """
    files = {split: [str(file.relative_to(folder)) for file in held] for split, held in finished_files(folder).items()}
    note, directory = folder / "tfds" / "gathered.json", _directory(folder)
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == files:
        return _counts(tfds.builder_from_directory(directory))
    shutil.rmtree(folder / "tfds", ignore_errors=True)
    tfds.disable_progress_bar()
    download = None
    if beam_options is not None:
        import_beam()
        from apache_beam.options.pipeline_options import PipelineOptions

        download = tfds.download.DownloadConfig(beam_options=PipelineOptions(beam_options))
    builder = PreparedVideos(folder, beam=beam_options is not None)
    builder.download_and_prepare(download_config=download, file_format="array_record")
    write_json(note, files)
    return _counts(builder)


def _directory(folder: Path) -> Path:
    return folder / "tfds" / _NAME / str(PreparedVideos.VERSION)


def _counts(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
    return {name: info.num_examples for name, info in builder.info.splits.items()}


def open_prepared(folder: Path, split: str):
    """The gathered records of a split; None if `folder` does not hold prepared videos.

    Raises:
        InputError: it does, but not this split, or they were never gathered.
    """
    if not (folder / "settings.json").is_file():
        return None
    directory = _directory(folder)
    if not directory.is_dir():
        raise InputError(f"{folder}: videos were prepared, but not to the end; run the same command again")
    builder = tfds.builder_from_directory(directory)
    if split not in builder.info.splits:
        raise InputError(f"{folder}: has no split {split!r}; it has {', '.join(builder.info.splits)}")
    return builder.as_data_source(split=split)


def _examples(file: Path) -> Iterator[tuple[str, dict]]:
    return ((record["name"], record) for record in read_clips(file))


def _feature(name: str, value: Any) -> tfds.features.FeatureConnector:
    """Raw arrays (see `procedural.builder`), except masks and text features, which are mostly zeros."""
    if isinstance(value, str):
        return tfds.features.Text()
    sparse = value.dtype == np.bool_ or name.endswith("context")
    encoding = tfds.features.Encoding.ZLIB if sparse else tfds.features.Encoding.BYTES
    return tfds.features.Tensor(shape=value.shape, dtype=value.dtype, encoding=encoding)

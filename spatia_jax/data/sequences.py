"""Posed RGB-D sequences at random access, from files that are prepared on first use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain

from spatia_jax.data.procedural.records import ProceduralConfig


class _Records(Sequence):
    """A TFDS data source whose captions are text."""

    def __init__(self, source: Sequence[dict]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._source[index]
        return record | {"caption": record["caption"].decode(), "seed": int(record["seed"])}


def open_sequences(config: ProceduralConfig, folder: Path, split: str = "train") -> Sequence[dict]:
    """Records of the procedural data set in `folder`; renders and writes them first if they are not there.

    Args:
        split: "train", "validation" or "test"; the last two are of scenes that training never sees.

    Returns: records by index, as `procedural.make_record` describes them.
    """
    from spatia_jax.data.procedural.builder import ProceduralWorld  # TFDS is slow to import; only files need it

    builder = ProceduralWorld(config, data_dir=str(folder))
    builder.download_and_prepare(file_format="array_record")
    return _Records(builder.as_data_source(split=split))


def sequence_batches(source: Sequence[dict], *, batch_size: int, seed: int, keys: tuple[str, ...]) -> grain.MapDataset:
    """Endless shuffled batches of whole sequences; batch i is a function of i and the seed alone.

    Its iterator (`iter(dataset.to_iter_dataset())`) has `get_state` and `set_state`, to stop and go on.
    """

    def pick(record: dict) -> dict:
        return {key: record[key] for key in keys}

    shuffled = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    return shuffled.map(pick).batch(batch_size, drop_remainder=True)

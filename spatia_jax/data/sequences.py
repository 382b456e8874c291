"""Posed RGB-D sequences at random access: the procedural world, or real videos that were prepared."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain

from spatia_jax.data.pipeline import batched, shuffled
from spatia_jax.data.procedural.records import ProceduralConfig


class _Records(Sequence):
    """A TFDS data source whose texts are text."""

    def __init__(self, source: Sequence[dict]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._source[index]
        texts = {name: value.decode() for name, value in record.items() if isinstance(value, bytes)}
        return record | texts | ({"seed": int(record["seed"])} if "seed" in record else {})


class Together(Sequence):
    """Several data sets, one after another; or as `sources`, with the `weights` that they have in a mixture."""

    def __init__(self, sources: Sequence[Sequence[dict]], weights: Sequence[float] = ()):
        self.sources, self.weights = sources, weights or [len(source) for source in sources]
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        return self.sources[number][index - (self._ends[number - 1] if number else 0)]


def open_sequences(config: ProceduralConfig, folder: Path, split: str = "train") -> Sequence[dict]:
    """Records of the data set in `folder`.

    Prepared videos (`python -m spatia_jax.data prepare`) are opened; else it is the procedural world, which is rendered
    and written first if it is not there. Both have `frames`, `depth`, `moving`, `cam_from_world`, `intrinsics` and
    `caption` (`procedural.make_record`); docs/data.md lists what prepared videos have besides.

    Args:
        split: "train", "validation" or "test"; the last two are of scenes that training never sees.
    """
    # TFDS is slow to import; only files need it
    from spatia_jax.data.procedural.builder import ProceduralWorld
    from spatia_jax.data.videos.builder import open_prepared

    prepared = open_prepared(folder, split)
    if prepared is not None:
        return _Records(prepared)
    builder = ProceduralWorld(config, data_dir=str(folder))
    builder.download_and_prepare(file_format="array_record")
    return _Records(builder.as_data_source(split=split))


def sequence_batches(source: Sequence[dict], *, batch_size: int, seed: int, keys: tuple[str, ...]) -> grain.MapDataset:
    """Endless shuffled batches of whole sequences; batch i is a function of i and the seed alone.

    Its iterator (`iter(dataset.to_iter_dataset())`) has `get_state` and `set_state`, to stop and go on.
    """

    def pick(record: dict) -> dict:
        return {key: record[key] for key in keys}

    return batched(shuffled(source, seed).map(pick), batch_size)

"""The procedural world as a TFDS data set of ArrayRecord files; needs no TensorFlow to build or to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import tensorflow_datasets as tfds

from spatia_jax.data.procedural.records import HELD_OUT, ProceduralConfig, make_record
from spatia_jax.errors import InputError


class ProceduralWorld(tfds.core.GeneratorBasedBuilder):
    """Posed RGB-D sequences with motion masks and captions, one scene each.

    Split `train` has the config's scenes; `validation` and `test` have one for every 20 of those (at least one), with
    seeds from `HELD_OUT` on that training never uses. Frames and depth are kept raw: a training run reads every record
    many times, and inflating them would cost more than its reading.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, config: ProceduralConfig, **kwargs):
        if config.first_seed < HELD_OUT < config.first_seed + config.scenes:
            last = config.first_seed + config.scenes - 1
            raise InputError(f"seeds {config.first_seed}..{last} run into the held-out ones, which start at {HELD_OUT}")
        self.sequences = config
        name = f"{config.scenes}x{config.frames}_{config.height}x{config.width}_from_{config.first_seed}"
        super().__init__(
            config=tfds.core.BuilderConfig(name=name, version=self.VERSION, description=repr(config)),
            file_format="array_record",
            **kwargs,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        t, h, w = self.sequences.frames, self.sequences.height, self.sequences.width

        def raw(shape: tuple[int, ...], dtype: type) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

        features = {
            "frames": raw((t, h, w, 3), np.uint8),
            "depth": raw((t, h, w), np.float16),
            "moving": tfds.features.Tensor(shape=(t, h, w), dtype=np.bool_, encoding=tfds.features.Encoding.ZLIB),
            "cam_from_world": raw((t, 3, 4), np.float32),
            "intrinsics": raw((t, 4), np.float32),
            "caption": tfds.features.Text(),
            "seed": tfds.features.Scalar(np.int64),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        few = max(1, self.sequences.scenes // 20)
        validation = replace(self.sequences, scenes=few, first_seed=HELD_OUT + self.sequences.first_seed)
        test = replace(validation, first_seed=validation.first_seed + few)
        splits = {"train": self.sequences, "validation": validation, "test": test}
        return {name: self._generate_examples(config) for name, config in splits.items()}

    def _generate_examples(self, config: ProceduralConfig) -> Iterator[tuple[int, dict]]:
        for index in range(config.scenes):
            record = make_record(config, index)
            yield record["seed"], record

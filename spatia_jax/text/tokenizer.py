"""Token ids of prompts, with the cleaning, end mark and padding that UMT5's prompts had (spec 2.9)."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from spatia_jax.errors import InputError

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2 in UMT5 and in the tokenizers trained here


class Tokenizer:
    """Texts to ids: `Tokenizer.load(path).encode(["a room"], 512)`.

    Attributes:
        pad, eos: ids of padding and of the mark after each text.
        vocab_size: ids are below this.
    """

    def __init__(self, split: Callable[[str], list[int]], pad: int, eos: int, vocab_size: int):
        self._split = split
        self.pad, self.eos, self.vocab_size = pad, eos, vocab_size

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json` (Hugging Face) or a `spiece.model` (SentencePiece), or a folder that holds one.

        Raises:
            InputError: there is no such file, or it is neither.
        """
        file = find_tokenizer(path)
        read = _read_json if file.suffix == ".json" else _read_sentencepiece
        split, (pad, eos), vocab_size = read(file)
        if pad is None or eos is None or min(pad, eos) < 0:
            raise InputError(f"the tokenizer {file} has no {PAD!r} or no {EOS!r} token; UMT5's have both")
        return cls(split, pad, eos, vocab_size)

    def encode(self, texts: Sequence[str], length: int) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Ids [b, length] int32 and mask [b, length]: true up to and including the end mark.

        Texts are cleaned first. Longer ones lose their end, never the end mark; shorter ones are padded.
        """
        if isinstance(texts, str):
            raise InputError(f"encode takes a list of texts; write [{texts[:20]!r}]")
        if length < 1:
            raise InputError(f"text length is {length}; it must be at least 1")
        ids = np.full((len(texts), length), self.pad, np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            tokens = [*self._split(clean(text))[: length - 1], self.eos]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask


def find_tokenizer(path: str | Path) -> Path:
    """The tokenizer at `path`: the file itself, or the `tokenizer.json` or `spiece.model` in a folder.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    candidates = [path / name for name in ("tokenizer.json", "spiece.model")] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(f"no tokenizer at {path}; expected a tokenizer.json, a spiece.model, or a folder with one")


def clean(text: str) -> str:
    """Mend broken Unicode, undo HTML escapes (even doubled ones), make every run of white space one space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def train_tokenizer(captions: Iterable[str], vocab_size: int, path: str | Path) -> Tokenizer:
    """Learn a small vocabulary and write it as `tokenizer.json`; the same captions give the same file.

    Byte pairs over UTF-8: frequent words of the captions become one token each, and what the captions never held, in
    any language, falls apart into bytes, so that no prompt is unknown.

    Args:
        captions: texts like those that the model will be asked with.
        vocab_size: at most so many ids: 3 marks, 256 bytes, the rest merged pairs.
        path: the file to write.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = [PAD, EOS, UNK]
    if vocab_size < len(marks) + len(alphabet):
        raise InputError(f"vocab_size is {vocab_size}; it must be at least {len(marks) + len(alphabet)}")
    learner = tokenizers.Tokenizer(models.BPE(unk_token=UNK))
    learner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator((clean(caption) for caption in captions), trainer)
    learner.save(str(path))
    return Tokenizer.load(path)


def _read_json(file: Path):
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise _unreadable(file, error) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def split(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return split, (tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)), tokenizer.get_vocab_size()


def _read_sentencepiece(file: Path):
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise _unreadable(file, error) from error
    return processor.encode, (processor.pad_id(), processor.eos_id()), processor.vocab_size()


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} is not a tokenizer that can be read ({error})")

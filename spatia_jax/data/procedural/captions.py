"""Captions of procedural scenes: a small closed vocabulary, stored in the scene as word indices."""

from __future__ import annotations

import numpy as np

MAX_WORDS = 64
_WORDS = """
    , a an and with while walls floor room bedroom living library courtyard
    plaster striped brick tiled wooden stone checkered marble patterned dotted
    red orange yellow green teal blue purple pink white grey brown beige
    table round cabinet wardrobe bookshelf sofa bed crate stack of crates lamp plant tree chair column statue bench
    ball box sphere cylinder slides back forth moves in circles floats up down
"""
VOCABULARY = sorted(set(_WORDS.split()))


def encode(text: str) -> np.ndarray:
    """Word indices [MAX_WORDS] int32 of a caption whose words are separated by spaces; -1 after the end."""
    words = [VOCABULARY.index(word) for word in text.split()]
    return np.array(words + [-1] * (MAX_WORDS - len(words)), np.int32)


def caption(scene) -> str:
    """One sentence that names the place, some of its props, and what moves.

    Returns:
      Words of `VOCABULARY` with spaces between them, commas attached to the word before.
    """
    return " ".join(VOCABULARY[word] for word in np.asarray(scene.words) if word >= 0).replace(" ,", ",")

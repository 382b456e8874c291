"""Captions that lie in a file of their own, by the name of the video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spatia_jax.cameras.parsing import read_text
from spatia_jax.errors import InputError

_NAMES, _TEXTS = ("name", "video", "video_path"), ("caption", "long_caption", "text")


def read_captions(path: Path) -> dict[str, str]:
    """Captions by name, without folders and ending.

    `.json`: an object name -> text, or a list of objects; `.jsonl`: an object a line, with `name` (or `video`,
    `video_path`) and `caption` (or `long_caption`, `text`); anything else: a line a video, name, tab, text.
    """
    text = read_text(path)
    try:
        if path.suffix == ".jsonl":
            held: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            held = json.loads(text)
        else:
            held = dict(_split(line, f"{path}:{i}") for i, line in enumerate(text.splitlines(), 1) if line.strip())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error.msg}, line {error.lineno})") from None
    if isinstance(held, list):
        held = dict(_pair(entry, f"{path}: entry {i + 1}") for i, entry in enumerate(held))
    if not isinstance(held, dict) or not all(isinstance(caption, str) for caption in held.values()):
        raise InputError(f"{path}: expected captions as text, by the name of the video")
    return {caption_key(name): caption.strip() for name, caption in held.items()}


def caption_key(name: str) -> str:
    """What videos and captions are matched by: the last part of the name, without a video's ending."""
    last = name.rsplit("/", 1)[-1]
    stem, _, ending = last.rpartition(".")
    return stem if stem and f".{ending.lower()}" in (".mp4", ".mov", ".mkv", ".avi", ".webm") else last


def _split(line: str, where: str) -> tuple[str, str]:
    name, tab, caption = line.partition("\t")
    if not tab:
        raise InputError(f"{where}: expected the video's name, a tab, and its caption")
    return name.strip(), caption


def _pair(entry: Any, where: str) -> tuple[str, str]:
    values = entry if isinstance(entry, dict) else {}
    name, caption = (next((values[key] for key in keys if key in values), None) for keys in (_NAMES, _TEXTS))
    if not isinstance(name, str) or not isinstance(caption, str):
        raise InputError(f"{where}: expected an object with {' or '.join(_NAMES)}, and {' or '.join(_TEXTS)}")
    return name, caption

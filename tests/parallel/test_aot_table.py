"""The programs of docs/aot.md, compiled again: they fit, and call the collectives that the table lists, no other."""

from __future__ import annotations

import importlib.util
import json

import pytest

from benchmarks.aot import ROWS, TABLE, compile_row

LISTED = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("name", LISTED)
def test_row(name):
    listed, found = LISTED[name], compile_row(name)
    assert found["fits"]
    assert found["peak_bytes"] == pytest.approx(listed["peak_bytes"], rel=0.01)
    counts = {kind: value["count"] for kind, value in found["collectives"].items()}
    assert counts == {kind: value["count"] for kind, value in listed["collectives"].items()}


def test_every_listed_row_is_one_that_can_be_compiled_and_fits():
    assert set(LISTED) <= set(ROWS)
    assert all(row["fits"] for row in LISTED.values())

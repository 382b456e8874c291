"""Everything that docs/aot.md says fits: compiles each row for its slice and writes what came out to docs/aot.json.

    python -m benchmarks.aot                     all rows, one after another: about an hour on two quiet cores
    python -m benchmarks.aot stage1-v5p ...      some of them; the others stay as they are in the file
    python -m benchmarks.aot --table             prints the file as the table of docs/aot.md

`make test-all` compiles the rows again and compares with the file (tests/parallel/test_aot_table.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from spatia_jax.errors import InputError, exit_status
from spatia_jax.io.atomic import write_json

TABLE = Path(__file__).parent.parent / "docs" / "aot.json"

# 121 frames with history, as the opening clip has without, and 7 references.
_SAMPLING = ("configs/spatia_5b.py", "--clip.new-frames", "112")
_STAGE1 = ("configs/spatia_5b_stage1.py", "--program", "train", "--stage", "stage1")
_STAGE2 = (
    "configs/spatia_5b_stage2.py", "--program", "train", "--stage", "stage2", "--clip.new-frames", "112"
)  # fmt: skip

# Eight along `context` divide neither rows nor columns of the autoencoder.
_CONTEXT4_TENSOR2 = ("--mesh.context", "4", "--mesh.tensor", "2")
# The paper's stage 1 has no references; with them it is as large as stage 2.
_STAGE1_REFERENCES = (*_STAGE1, "--clips", "continuing", "--clip.new-frames", "112")

ROWS: dict[str, tuple[str, ...]] = {
    "stage1-v5p": (*_STAGE1, "--topology", "v5p:4x4x4", "--transformer.remat", "hidden"),
    "stage2-v5p": (*_STAGE2, "--topology", "v5p:4x4x4", "--transformer.remat", "hidden"),
    "stage1-v6e": (*_STAGE1, "--topology", "v6e:8x8", "--transformer.remat", "block"),
    "stage2-v6e": (*_STAGE2, "--topology", "v6e:8x8", "--transformer.remat", "block"),
    "stage1-references-v5p": (*_STAGE1_REFERENCES, "--topology", "v5p:4x4x4", "--transformer.remat", "hidden"),
    "stage1-references-v6e": (*_STAGE1_REFERENCES, "--topology", "v6e:8x8", "--transformer.remat", "block"),
    "sample-v5p": (*_SAMPLING, "--program", "sample", "--topology", "v5p:2x2x1"),
    "sample-v6e": (*_SAMPLING, "--program", "sample", "--topology", "v6e:2x4"),
    "decode-v5p": (*_SAMPLING, "--program", "decode", "--topology", "v5p:2x2x1"),
    "clip-step-v5p": (*_SAMPLING, "--program", "clip-step", "--topology", "v5p:2x2x2", *_CONTEXT4_TENSOR2),
}


def compile_row(name: str) -> dict[str, Any]:
    """What `spatia_jax.parallel.aot` says of a row; in a process of its own, which gives its memory back."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        command = [sys.executable, "-m", "spatia_jax.parallel.aot", *ROWS[name], "--json", str(output)]
        done = subprocess.run(command, cwd=TABLE.parent.parent, check=False)
        if not output.is_file():
            raise InputError(f"row {name}: status {done.returncode} of {' '.join(command)}")
        return json.loads(output.read_text(encoding="utf-8"))


def as_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table of docs/aot.md."""
    lines = [
        "| | slice | mesh | GB of each chip | collectives (GB) | estimated s | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        mesh = " ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
        calls = [f"{kind} {c['count']} ({c['bytes'] / 1e9:.1f})" for kind, c in row["collectives"].items()]
        verdict = "" if row["fits"] else " **does not fit**"
        held = f"{row['peak_bytes'] / 1e9:.1f} of {row['hbm_bytes'] / 1e9:g}{verdict}"
        time = f"{row['estimated_step_s']:.2f} | {row['implied_mfu']:.0%}"
        lines.append(f"| {name} | {row['topology']} | {mesh} | {held} | {', '.join(calls)} | {time} |")
    return "\n".join(lines)


def main() -> None:
    """Compiles the named rows, or all, and prints the table."""
    rows = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    names = sys.argv[1:]
    if names != ["--table"]:
        if unknown := set(names) - set(ROWS):
            raise InputError(f"no rows {sorted(unknown)}; there are {', '.join(ROWS)}")
        for name in names or ROWS:
            rows[name] = compile_row(name)
            write_json(TABLE, {known: rows[known] for known in ROWS if known in rows})
    print(as_markdown(rows))


if __name__ == "__main__":
    sys.exit(exit_status(main))

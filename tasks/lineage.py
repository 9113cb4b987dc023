"""lineage.jsonl: what became of every candidate and every task of a suite, one JSON object a line; knows no sandbox."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "lineage.jsonl"


def append(suite: Path, entry: dict[str, Any]) -> None:
    """Add one line; a line that an interruption tore is closed first."""
    path = suite / NAME
    torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(entry, ensure_ascii=False) + "\n")


def entries(suite: Path) -> Iterator[dict[str, Any]]:
    """Every whole line, in order; a torn one is left out."""
    path = suite / NAME
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue

"""Where rows come from: .jsonl, .json, .parquet, or the Hugging Face hub; knows no columns.

A broken line of a .jsonl is handed on as text, so that the rest can still be read.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any] | str


def is_hub_name(name: str) -> bool:
    """Whether a name can be a data set of the hub: OWNER/NAME."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None and Path(name).suffix not in (
        ".jsonl",
        ".json",
        ".parquet",
    )


def read_rows(name: str) -> Iterator[tuple[str, Row]]:
    """(place, row) of a file or of a data set of the hub (ValueError for a file of another kind)."""
    path = Path(name)
    if not path.exists():
        yield from _from_hub(name)
    elif path.suffix == ".parquet":
        from pyarrow.parquet import read_table

        yield from _numbered(path.name, read_table(path).to_pylist())
    elif path.suffix == ".jsonl":
        yield from (found for found in _numbered(path.name, _read(path).split("\n")) if str(found[1]).strip())
    elif path.suffix == ".json":
        yield from _numbered(path.name, _from_json(path))
    else:
        raise ValueError(
            f"{path}: a suite is a folder with tasks/, a .jsonl, .json or .parquet file, or OWNER/NAME on the Hugging Face hub"
        )


def _numbered(name: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    yield from ((f"{name}:{number}", row) for number, row in enumerate(rows, 1))


def _from_json(path: Path) -> list[Row]:
    text = _read(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: malformed JSON ({error})") from None
    if not isinstance(found, list):
        raise ValueError(f"{path}: a list of rows is needed, found {type(found).__name__}")
    return [row if isinstance(row, dict) else json.dumps(row) for row in found]


def _from_hub(name: str) -> Iterator[tuple[str, Row]]:
    """Every split of a data set; a row without a split of its own gets that of its place."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        found = load_dataset(name)
    except (OSError, DatasetsError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"{name}: no such file, and no such data set of the Hugging Face hub can be had ({why})") from None
    for split, rows in found.items():
        yield from _numbered(split, ({"split": split, **row} for row in rows))


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None

"""Predictions: patches by instance id, as the official harness reads and writes them; knows no model and no sandbox."""

import difflib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "predictions.jsonl"
COLUMNS = ("instance_id", "model_name_or_path", "model_patch")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line."""

    instance_id: str
    model: str
    patch: str


def read_predictions(path: Path, known: Collection[str]) -> list[Prediction]:
    """All of them, or ValueError with the first line that is malformed, unknown or there twice."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such predictions file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    found: dict[str, Prediction] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prediction = _read_line(f"{path}:{number}", line)
        _check(f"{path}:{number}", prediction, known, found)
        found[prediction.instance_id] = prediction
    if not found:
        raise ValueError(f"{path}: holds no predictions")
    return list(found.values())


def write_predictions(folder: Path, predictions: Sequence[Prediction]) -> None:
    """predictions.jsonl in one piece."""
    part = folder / f"{FILE}.part"
    rows = [dict(zip(COLUMNS, (one.instance_id, one.model, one.patch), strict=True)) for one in predictions]
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, folder / FILE)


def _read_line(where: str, line: str) -> Prediction:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: malformed JSON ({error.msg} at column {error.colno}); one object a line is needed") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: an object with {', '.join(COLUMNS)} is needed, found {type(row).__name__}")
    for column in COLUMNS:
        if column not in row:
            raise ValueError(f"{where}: {column} is missing")
    if row["model_patch"] is None:  # as some agents write "no patch"
        row["model_patch"] = ""
    for column in COLUMNS:
        if not isinstance(row[column], str):
            raise ValueError(f"{where}: {column} must be text, found {type(row[column]).__name__}")
    return Prediction(*(row[column] for column in COLUMNS))


def _check(where: str, prediction: Prediction, known: Collection[str], found: Collection[str]) -> None:
    name = prediction.instance_id
    if name in found:
        raise ValueError(f"{where}: instance_id {name} stands twice")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{where}: instance_id {name} is not in the suite{hint}")

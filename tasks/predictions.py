"""Predictions files, as the official harness and SWE-agent write them: read and checked, or written; knows no sandbox."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Prediction, Suite


def load_predictions(path: str | Path, suite: Suite) -> tuple[Prediction, ...]:
    """The predictions of a .jsonl, or of a .json with a list or a mapping of ids.

    ValueError names the file, the place and what is wrong with it: malformed JSON, a missing field, an id that the suite does not
    have, an id that comes twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no predictions file {path}")
    found = [_prediction(row, place) for place, row in _rows(path)]
    known = {task.instance_id for task in suite.tasks}
    if unknown := sorted({item.instance_id for item in found} - known):
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(f"{path}: not in {suite.path}: {', '.join(unknown[:3])}{more}")
    ids = [item.instance_id for item in found]
    if twice := sorted({instance_id for instance_id in ids if ids.count(instance_id) > 1}):
        raise ValueError(f"{path}: more than one prediction for {', '.join(twice[:3])}")
    return tuple(found)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON object a line, as the official harness reads it."""
    keys = ("instance_id", "model_name_or_path", "model_patch")
    lines = (json.dumps({key: getattr(item, key) for key in keys}) for item in predictions)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _rows(path: Path) -> list[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        return [(f"{path}:{number}", _json(line, f"{path}:{number}")) for number, line in lines if line.strip()]
    value = _json(text, str(path))
    if isinstance(value, dict):
        return [(f"{path}: {key}", {"instance_id": key} | row if isinstance(row, dict) else row) for key, row in value.items()]
    if not isinstance(value, list):
        raise ValueError(f"{path}: a list of predictions, or a mapping of instance ids to them, is needed")
    return [(f"{path}: item {number}", row) for number, row in enumerate(value, 1)]


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: malformed JSON ({error})") from None


def _prediction(row: Any, place: str) -> Prediction:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: an object is needed, found {type(row).__name__}")
    if not isinstance(row.get("instance_id"), str):
        raise ValueError(f"{place}: instance_id is missing")
    patch = row.get("model_patch")
    if "model_patch" not in row or not isinstance(patch, str | None):
        raise ValueError(f"{place}: model_patch must be text or null")
    return Prediction(row["instance_id"], str(row.get("model_name_or_path") or "unnamed"), patch or "")

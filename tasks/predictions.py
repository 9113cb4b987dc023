"""Predictions, as the official harness and other agents write them: read and checked, or written; knows no sandbox.

FILE.jsonl   one object a line                       official harness, SWE-agent before 1.0 (all_preds.jsonl)
FILE.json    a list of them, or id -> object         official harness; SWE-agent and mini-SWE-agent (preds.json)
FILE.pred    one object                              SWE-agent
a folder     every *.pred below it; else preds.json, all_preds.jsonl or predictions.jsonl in it
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Prediction, Suite

NAMES = ("preds.json", "all_preds.jsonl", "predictions.jsonl")
"""What agents and `eval` call the file of a whole run; the first that is there is read."""


def load_predictions(path: str | Path, suite: Suite) -> tuple[Prediction, ...]:
    """The predictions of a file or of an agent's output folder, in any of the forms above.

    ValueError names the file, the place and what is wrong with it: malformed JSON, a missing field, an id that the suite does not
    have, an id that comes twice.
    """
    path = Path(path)
    found = [_prediction(row, place) for file in _files(path) for place, row in _rows(file)]
    known = {task.instance_id for task in suite.tasks}
    if unknown := sorted({item.instance_id for item in found} - known):
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(f"{path}: not in {suite.path}: {', '.join(unknown[:3])}{more}")
    counts = Counter(item.instance_id for item in found)
    if twice := sorted(instance_id for instance_id, count in counts.items() if count > 1):
        raise ValueError(f"{path}: more than one prediction for {', '.join(twice[:3])}")
    return tuple(found)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON object a line, as the official harness reads it."""
    keys = ("instance_id", "model_name_or_path", "model_patch")
    lines = (json.dumps({key: getattr(item, key) for key in keys}) for item in predictions)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _files(path: Path) -> list[Path]:
    """The files to read: the path itself, or what a run left in a folder."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"no predictions file {path}")
    found = sorted(path.rglob("*.pred")) or [path / name for name in NAMES if (path / name).is_file()][:1]
    if not found:
        raise FileNotFoundError(f"{path}: no predictions in this folder: neither *.pred nor {', '.join(NAMES)}")
    return found


def _rows(path: Path) -> list[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        return [(f"{path}:{number}", _json(line, f"{path}:{number}")) for number, line in lines if line.strip()]
    value = _json(text, str(path))
    if isinstance(value, dict):
        return [(str(path), value)] if isinstance(value.get("instance_id"), str) else _mapped(path, value)
    if not isinstance(value, list):
        raise ValueError(f"{path}: a list of predictions, or a mapping of instance ids to them, is needed")
    return [(f"{path}: item {number}", row) for number, row in enumerate(value, 1)]


def _mapped(path: Path, value: dict[str, Any]) -> list[tuple[str, Any]]:
    """The rows of id -> row; a row that names another id is an error, one that names none has its key's."""
    rows: list[tuple[str, Any]] = []
    for key, row in value.items():
        if isinstance(row, dict) and row.get("instance_id", key) != key:
            raise ValueError(f"{path}: {key}: its instance_id is {row['instance_id']!r}")
        rows.append((f"{path}: {key}", {"instance_id": key} | row if isinstance(row, dict) else row))
    return rows


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: malformed JSON ({error})") from None


def _prediction(row: Any, place: str) -> Prediction:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: an object is needed, found {type(row).__name__}")
    if not isinstance(row.get("instance_id"), str):
        raise ValueError(f"{place}: instance_id is missing")
    patch = row.get("model_patch")
    if "model_patch" not in row or not isinstance(patch, str | None):
        raise ValueError(f"{place}: model_patch must be text or null")
    if patch and any("\ud800" <= letter <= "\udfff" for letter in patch):
        raise ValueError(f"{place}: model_patch holds half a surrogate pair, which no file can")
    return Prediction(row["instance_id"], str(row.get("model_name_or_path") or "unnamed"), patch or "")

"""Columns of a row, checked: a value of the wanted type, or Broken with the field's name; knows no family."""

import json
from typing import Any


class Broken(Exception):
    """One task cannot be read; the message names the field."""


def text(row: dict[str, Any], key: str) -> str:
    """A text or a number, as text."""
    value = row.get(key)
    if value is None:
        raise Broken(f"{key}: missing")
    if not isinstance(value, str | int | float):
        raise Broken(f"{key}: text is needed, found {type(value).__name__}")
    found = str(value)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise Broken(f"{key}: holds half a surrogate pair, which no file can") from None
    return found


def maybe(row: dict[str, Any], key: str, default: str = "") -> str:
    """A text that may be missing."""
    return default if row.get(key) is None else text(row, key)


def tests(row: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of test ids, or one as JSON text (the Python sets of SWE-bench)."""
    value = row.get(key)
    if isinstance(value, str):
        value = as_json(value, key)
    if not isinstance(value, list) or not all(isinstance(test, str) for test in value):
        raise Broken(f"{key}: a list of test ids is needed")
    return tuple(value)


def mapping(row: dict[str, Any], key: str) -> dict[str, Any]:
    """An object, or one as JSON text."""
    value = row.get(key)
    if isinstance(value, str):
        value = as_json(value, key)
    if not isinstance(value, dict):
        raise Broken(f"{key}: an object is needed, found {type(value).__name__}")
    return value


def lines(row: dict[str, Any], key: str) -> tuple[str, ...]:
    """Commands: one text, or a list of them (or that as JSON text)."""
    value = row.get(key)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = as_json(value, key)
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(isinstance(line, str) for line in value):
        raise Broken(f"{key}: a command, or a list of commands, is needed")
    return tuple(value)


def as_json(value: str, key: str) -> Any:
    """Parsed JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Broken(f"{key}: malformed JSON ({error})") from None

"""Replace a text that occurs exactly once, or say how to find it; pure, knows nothing of files or sandboxes."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edited:
    """The new text, and where (in characters of the old one) it differs."""

    text: str
    at: int


@dataclass(frozen=True, slots=True)
class EditError:
    """Why an edit cannot be made; the hint says what to do."""

    message: str
    hint: str = ""


def replace_once(text: str, old: str, new: str) -> Edited | EditError:
    """Put `new` for the only occurrence of `old`; the line ends of the file are kept."""
    if "\r\n" in text and "\r" not in old + new:
        old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
    if not old:
        return EditError("the old text is empty, and the file exists", "; nothing changed")
    if old == new:
        return EditError("old and new text are the same", "; nothing changed")
    places = _occurrences(text, old)
    if not places:
        return EditError("the old text does not occur", _nearest(text, old))
    if len(places) > 1:
        numbers = ", ".join(str(text[:place].count("\n") + 1) for place in places[:10])
        return EditError(f"the old text occurs {len(places)} times (lines {numbers})", "; add a neighbouring line to it")
    at = places[0]
    return Edited(text[:at] + new + text[at + len(old) :], at)


def _occurrences(text: str, old: str) -> list[int]:
    """Where `old` begins, overlapping ones included; at most 100."""
    places: list[int] = []
    at = text.find(old)
    while at >= 0 and len(places) < 100:
        places.append(at)
        at = text.find(old, at + 1)
    return places


def _nearest(text: str, old: str) -> str:
    """A hint: the line of the file that is most like the first line of the old text."""
    wanted = next((line.strip() for line in old.splitlines() if line.strip()), "")[:200]
    lines = [line.strip()[:200] for line in text.splitlines()[:5000]]
    if not wanted:
        return ""
    if wanted in lines:
        return f"; line {lines.index(wanted) + 1} has its first line: check the indentation and the lines after it"
    near = difflib.get_close_matches(wanted, set(lines), n=1)
    return f"; the nearest is line {lines.index(near[0]) + 1}: {near[0]}" if near else ""

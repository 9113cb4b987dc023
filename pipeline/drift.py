"""What an answer of the simulated user tells, and what is wrong with it: rules over words, so the same for the same dialogue.

Knows a goal and texts; no server, no episode. Words decide, not meaning: a contradiction without a word of negation or an unknown
value is not seen, and a free paraphrase may look like an invention. scripts/bench/drift.py measures both.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .goal import Event, Fault, Goal, States

Dialogue = Sequence[tuple[str, str]]
"""(question, answer), from the first."""

CLOSING = "That is all I know."
"""What a user says who has nothing left to tell."""
NO_ANSWER = "[the user does not answer]"
"""What the agent sees of a user that failed."""

TOLD, PARTLY = 0.6, 0.3
"""Shares of a component's words from which an answer has told it (see tells), or has tried to."""
NUMBERS = 0.75
"""Share of the numbers that a component tells beyond the question."""
ABOUT = 0.5
"""Share of a component's words from which a sentence is about it."""
KNOWN, FEW = 0.2, 4
"""A sentence of at least FEW words, of which a smaller share is known, is invented."""
_WORD = re.compile(r"[^\W\d_]\w+|-?\d+(?:\.\d+)?")
_VALUE = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)|`[^`\n]+`|(?<!\w)\w+_\w+|(?<![A-Za-z])'[^'\n]+'(?![A-Za-z])|\"[^\"\n]+\"")
_CUT = re.compile(r"\n\[\.\.\. \d+ characters left out \.\.\.\]\n")
"""What tools.clip writes."""
_AROUND_CUT = re.compile(rf"(?:(?<!\S)\S++)?{_CUT.pattern}\S*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_NOT = re.compile(r"\b(?:not|never|no|nor|neither|without|cannot)\b|n't\b", re.IGNORECASE)
_FIRST = re.compile(r"^\s*(?:no|yes)\b[,.;:!]?\s*", re.IGNORECASE)
_RATHER = re.compile(
    r"(?:[,;]|(?<!\s))\s*+(?:(?:and|but)\s*+)?\b(?:not|rather than|instead of)\s+(?:-?\d[\d.]*|`[^`\n]+`|'[^'\n]+'|\"[^\"\n]+\")",
    re.IGNORECASE,
)
_STOP = frozenset(
    re.findall(
        r"\w+",
        "the and that this with for are was were has have had its it is be been not but from they them their there then than when what "
        "which who whom how why should would could must can may might will shall does did do you your yours our ours any all some just "
        "also into onto out over such very really about like want need please thing things",
    )
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and all that it is measured against."""

    goal: Goal
    states: States
    """Before it."""
    before: Dialogue
    question: str
    text: str
    statement: str
    """The task's whole statement: what stands in it is nobody's invention."""
    reveals: bool = False
    """Whether a line of the gold patch is in it."""


def read_answer(answer: Answer) -> Event:
    """What the answer does to the goal. A faulty one tells nothing: what it was about stays open."""
    told = [place for place in _open(answer) if tells(answer, answer.goal.components[place].text)]
    partly = [place for place in _open(answer) if place not in told and _share(answer, place) >= PARTLY]
    faults = find_faults(answer)
    if Fault.SILENT in faults:
        named = name_wanted(answer.goal, answer.states, answer.question)
        return Event(blocked=frozenset() if named is None else frozenset({named}), faults=faults)
    if faults:
        return Event(blocked=frozenset([*told, *partly]), faults=faults)
    return Event(frozenset(told), frozenset(partly))


def tells(answer: Answer, held: str) -> bool:
    """It has most words of what is held; of those that the question lacks half, and nearly all numbers: an echo of it tells nothing."""
    if is_quote(answer.text, held):
        return True
    fresh = words(held) - words(answer.question)
    numbers = {word for word in fresh if word[-1].isdigit()}
    said = words(answer.text)
    return overlap(answer.text, held) >= TOLD and len(said & fresh) >= ABOUT * len(fresh) and len(said & numbers) >= NUMBERS * len(numbers)


def find_faults(answer: Answer) -> tuple[Fault, ...]:
    """All that is wrong with an answer; () for one that stays with the goal."""
    if answer.text == NO_ANSWER or not re.search(r"\w", answer.text):
        return (Fault.SILENT,)
    quoted = any(is_quote(answer.text, one.text) for one in answer.goal.components)
    sentences = [] if quoted else split_sentences(_AROUND_CUT.sub("\n", answer.text))
    found = {
        Fault.REPEATS: _repeats(answer),
        Fault.CONTRADICTS: any(_contradicts(answer, sentence) for sentence in sentences),
        Fault.INVENTS: any(_invents(answer, sentence) for sentence in sentences),
        Fault.REVEALS: answer.reveals,
    }
    return tuple(fault for fault, there in found.items() if there)


def name_wanted(goal: Goal, states: States, question: str) -> int | None:
    """The place of the untold component that the question names by most words, else of the next untold one; None: all is told.

    >>> from .goal import Component, Kind
    >>> goal = Goal((Component(Kind.REQUIREMENT, "It sorts."), Component(Kind.REQUIREMENT, "An empty list stays empty.")))
    >>> name_wanted(goal, goal.begin(), "What of an empty list?")
    1
    """
    return next(iter(list_wanted(goal, states, question)), None)


def list_wanted(goal: Goal, states: States, question: str) -> list[int]:
    """All untold places of which the question names the same, largest number of words: all that is untold where it names none."""
    asked = words(question)
    named = {place: len(asked & words(goal.components[place].text)) for place in goal.untold(states)}
    return [place for place, count in named.items() if count == max(named.values())]


def words(text: str) -> set[str]:
    """Words that carry meaning, in small letters, and numbers."""
    return {word for word in map(str.lower, _WORD.findall(text)) if word not in _STOP}


def is_clipped(text: str) -> bool:
    """Whether something was left out of its middle (tools.clip)."""
    return _CUT.search(text) is not None


def same_words(one: str, other: str) -> bool:
    """Equal but for case, white space and marks."""
    return re.findall(r"\w+", one.lower()) == re.findall(r"\w+", other.lower())


def _open(answer: Answer) -> list[int]:
    return answer.goal.untold(answer.states)


def _share(answer: Answer, place: int) -> float:
    held = answer.goal.components[place].text
    return 1.0 if is_quote(answer.text, held) else overlap(answer.text, held)


def is_quote(text: str, held: str) -> bool:
    """Word for word what is held, but for a cut in its middle: whatever it says, it is the goal's."""
    head, *rest = [" ".join(part.split()) for part in _CUT.split(text)]
    whole = " ".join(held.split())
    return whole.startswith(head) and whole.endswith(rest[-1]) if rest else whole == head


def split_sentences(text: str) -> list[str]:
    """By their marks and by lines."""
    return [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]


def overlap(text: str, held: str) -> float:
    """The share of the held text's words that the other has."""
    wanted = words(held)
    return len(wanted & words(text)) / len(wanted) if wanted else float(same_words(text, held))


def _repeats(answer: Answer) -> bool:
    """The same to the same question is no fault, and neither is saying that all is told."""
    if not _open(answer):
        return False
    return any(same_words(text, answer.text) and not same_words(question, answer.question) for question, text in answer.before)


def _contradicts(answer: Answer, sentence: str) -> bool:
    """It is about something that the goal holds and denies it, or the other way round."""
    held = [text for one in answer.goal.components[3:] for text in split_sentences(one.text) if overlap(sentence, text) >= ABOUT]
    closest = max(held, key=lambda text: overlap(sentence, text), default=None)
    return closest is not None and _denies(sentence) != _denies(closest)


def _denies(text: str) -> bool:
    """`5, not 7` denies nothing of what it is about, and a No that comes first is for the question."""
    return bool(_NOT.search(_RATHER.sub("", _FIRST.sub("", text))))


def _invents(answer: Answer, sentence: str) -> bool:
    """A value that nobody named, or that only the question did and the user agrees to; or words that are of nothing here."""
    known = "\n".join([answer.statement, *(one.text for one in answer.goal.components)])
    strange = [value for value in _VALUE.findall(sentence) if not _holds(known, value)]
    if any(not _holds(answer.question, value) or not _denies_value(sentence) for value in strange):
        return True
    said = words(sentence) - words(CLOSING)
    return len(said) >= FEW and len(said & words(f"{known}\n{answer.question}")) < KNOWN * len(said)


def _denies_value(sentence: str) -> bool:
    return bool(_NOT.search(sentence) or _RATHER.search(sentence))


def _holds(text: str, value: str) -> bool:
    """Whether a value stands in a text, as a whole word, whatever its quotes."""
    bare = value.strip("`'\"")
    return re.search(rf"(?<![\w.]){re.escape(bare)}(?!\w)", text) is not None

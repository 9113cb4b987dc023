"""What an answer of a simulated user is worth to its training: rules over words, pure; knows a goal and texts, no model and no episode.

UGST's third stage (Mehri et al., arXiv:2507.20152): R(u) = sum over the five types j of .5 I_j(u). The paper asks a language model how the
goal stands; here I_j is 1 unless the answer u does what stands beside j:

    profile       tells a line of the fix
    policy        has another fault (drift.py: silent, repeats, contradicts, invents); or tells, beside the one thing that it tells, another
                  that the question is not about; or says that it is all while something is left to tell
    objective     gets nothing across while something is left to tell
    requirement   does not get across what was asked for, where that is a requirement: the untold one that the question names by most
                  words; any untold one where several are named alike, or none
    preference    the same, where that is a preference

Only u is judged: a user that drifted earlier starts from ALIGNED again, or no answer after it would differ from another. The same answer to
the same question asks for nothing more, if it told something. So a faithful answer earns 2.5; one that is faulty, empty, or says that it is
all too early earns 1.0 to 2.0.
Words decide, not meaning, as in drift.py, whose rules also choose which dialogues an agent learns from: a simulator that is trained on
them learns their blind spots too, and they can no longer tell how faithful it is.
"""

from .drift import (
    ABOUT,
    CLOSING,
    PARTLY,
    TOLD,
    Answer,
    is_quote,
    list_wanted,
    overlap,
    read_answer,
    same_words,
    split_sentences,
    tells,
    words,
)
from .goal import PATHS, WANTS, Event, Kind, State, States, advance

SHARE = 0.5
"""What each type is worth."""
MOST = SHARE * len(Kind)
"""What a faithful answer earns."""


def reward_answer(answer: Answer) -> float:
    """R(u), from 0 to MOST."""
    return SHARE * (len(Kind) - len(find_misaligned(answer)))


def find_misaligned(answer: Answer) -> frozenset[Kind]:
    """The types of component of which I_j is 0."""
    event = read_answer(answer)
    after = advance(answer.goal, _spotless(answer), event)
    spoilt = {one.kind for one, state in zip(answer.goal.components, after, strict=True) if _is_behaviour(one.kind) and _is_lost(state)}
    if tells_more(answer) or ends_early(answer, after):
        spoilt.add(Kind.POLICY)
    return frozenset(spoilt | _left_undone(answer, event, after))


def _left_undone(answer: Answer, event: Event, after: States) -> set[Kind]:
    """What it should have told and did not."""
    wanted = list_wanted(answer.goal, answer.states, answer.question)
    if not wanted or (says_again(answer) and not event.faults):
        return set()
    undone = set() if event.told else {Kind.OBJECTIVE}
    kinds = [answer.goal.components[place].kind for place in wanted]
    told = any(after[place] is PATHS[kind][-1] for place, kind in zip(wanted, kinds, strict=True))
    return undone if told else undone | {kinds[0]}


def tells_more(answer: Answer) -> bool:
    """It tells a second thing, in words that are not those of the first, and the question is not about it; a quote is one thing."""
    held = _held(answer)
    if any(is_quote(answer.text, text) for text in held):
        return False
    told = [text for text in held if overlap(answer.text, text) >= TOLD]
    main = max(told, key=lambda text: (overlap(answer.question, text), overlap(answer.text, text), len(words(text))), default="")
    fresh = words(answer.text) - words(main)
    others = [text for text in told if len(words(text) & fresh) >= max(PARTLY * len(words(text)), 1)]
    return any(overlap(answer.question, text) < ABOUT for text in others)


def ends_early(answer: Answer, after: States) -> bool:
    """It says that it is all (a sentence of CLOSING's words and no others of meaning), and something is left to tell."""
    if not answer.goal.untold(after) or any(is_quote(answer.text, text) for text in _held(answer)):
        return False
    return any(words(sentence) == words(CLOSING) for sentence in split_sentences(answer.text))


def says_again(answer: Answer) -> bool:
    """The same question got the same answer before, and that one told something."""
    same = [text for question, text in answer.before if same_words(question, answer.question) and same_words(text, answer.text)]
    return bool(same) and any(tells(answer, text) for text in _held(answer))


def _held(answer: Answer) -> list[str]:
    """What the user can tell, told or not."""
    return [one.text for one in answer.goal.components if one.kind in WANTS]


def _spotless(answer: Answer) -> States:
    """The states before, as if it had always behaved."""
    return tuple(
        PATHS[one.kind][0] if _is_behaviour(one.kind) else state for one, state in zip(answer.goal.components, answer.states, strict=True)
    )


def _is_behaviour(kind: Kind) -> bool:
    return kind in (Kind.PROFILE, Kind.POLICY)


def _is_lost(state: State) -> bool:
    return state is State.MISALIGNED

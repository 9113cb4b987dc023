"""A simulated user's goal and how it stands: components of five types, whose states only ever move one way; pure data and one function.

UGST (Mehri et al., arXiv:2507.20152). Knows no task, no text and no server. What an answer earns the simulator is in alignment.py.

    profile, policy        ALIGNED -> MISALIGNED, for good: who the user is, and how it has to behave
    objective, requirement INCOMPLETE -> ATTEMPTED -> COMPLETE: what it wants; ATTEMPTED was asked for and did not get across
    preference             MISALIGNED -> ALIGNED: what it would rather have, once it has said so
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Of a component."""

    PROFILE = "profile"
    POLICY = "policy"
    OBJECTIVE = "objective"
    REQUIREMENT = "requirement"
    PREFERENCE = "preference"


class State(StrEnum):
    """Of a component, at one moment of a dialogue."""

    ALIGNED = "aligned"
    MISALIGNED = "misaligned"
    INCOMPLETE = "incomplete"
    ATTEMPTED = "attempted"
    COMPLETE = "complete"


_BEHAVIOUR = (State.ALIGNED, State.MISALIGNED)
_PROGRESS = (State.INCOMPLETE, State.ATTEMPTED, State.COMPLETE)
PATHS = {
    Kind.PROFILE: _BEHAVIOUR,
    Kind.POLICY: _BEHAVIOUR,
    Kind.OBJECTIVE: _PROGRESS,
    Kind.REQUIREMENT: _PROGRESS,
    Kind.PREFERENCE: (State.MISALIGNED, State.ALIGNED),
}
"""Kind -> its states, from the first to the last."""
WANTS = frozenset({Kind.REQUIREMENT, Kind.PREFERENCE})
"""What a user can tell."""


class Fault(StrEnum):
    """What is wrong with an answer (drift.py)."""

    SILENT = "silent"
    """No answer: the server failed, took too long or said no word."""
    REPEATS = "repeats"
    """What it said before, to another question, while there was something left to tell."""
    CONTRADICTS = "contradicts"
    """The opposite of what the goal holds."""
    INVENTS = "invents"
    """A value, or whole sentences, that neither goal nor statement holds."""
    REVEALS = "reveals"
    """A line of the gold patch."""


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a goal."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """What one answer did."""

    told: frozenset[int] = frozenset()
    """Places of components that got across ..."""
    blocked: frozenset[int] = frozenset()
    """... and of those that were asked for, and did not."""
    faults: tuple[Fault, ...] = ()


States = tuple[State, ...]
"""One state for each component of a goal, in its order."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a simulated user holds."""

    components: tuple[Component, ...]

    def begin(self) -> States:
        """Before the first question."""
        return tuple(PATHS[one.kind][0] for one in self.components)

    def untold(self, states: States) -> list[int]:
        """Places of what it could still tell."""
        return [
            place
            for place, (one, state) in enumerate(zip(self.components, states, strict=True))
            if one.kind in WANTS and state is not PATHS[one.kind][-1]
        ]


@dataclass(frozen=True, slots=True)
class Heard:
    """What an answer of the user was, beside its words, which are the turn's observation."""

    faults: tuple[Fault, ...]
    states: tuple[tuple[Kind, State], ...]
    """Of all components, after it."""
    seconds: float = 0.0
    """That it took; no time of the episode's own."""

    @property
    def drifted(self) -> bool:
        """Whether the user is no more who it was meant to be."""
        return any(kind in (Kind.PROFILE, Kind.POLICY) and state is State.MISALIGNED for kind, state in self.states)


def advance(goal: Goal, states: States, event: Event) -> States:
    """The states after an event: each at its old place of its path, or further; a fault that the profile or policy suffers stays."""
    moved = [
        _further(one.kind, state, _reached(one.kind, place, event))
        for place, (one, state) in enumerate(zip(goal.components, states, strict=True))
    ]
    wanted = [state for one, state in zip(goal.components, moved, strict=True) if one.kind is Kind.REQUIREMENT]
    whole = State.COMPLETE if all(state is State.COMPLETE for state in wanted) else State.ATTEMPTED
    return tuple(
        _further(one.kind, state, whole) if one.kind is Kind.OBJECTIVE else state for one, state in zip(goal.components, moved, strict=True)
    )


def _reached(kind: Kind, place: int, event: Event) -> State | None:
    match kind:
        case Kind.PROFILE:
            return State.MISALIGNED if Fault.REVEALS in event.faults else None
        case Kind.POLICY:
            return State.MISALIGNED if set(event.faults) - {Fault.REVEALS} else None
        case Kind.OBJECTIVE:
            return None
        case _:
            return PATHS[kind][-1] if place in event.told else PATHS[kind][-2] if place in event.blocked else None


def _further(kind: Kind, state: State, reached: State | None) -> State:
    path: Sequence[State] = PATHS[kind]
    return state if reached is None else path[max(path.index(state), path.index(reached))]

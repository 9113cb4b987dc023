"""Where episodes that are under way are kept turn by turn, so that a killed run goes on in the middle of them; knows no files."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from .types import Turn


class Diary(Protocol):
    """What run_episode writes as it goes (journal.Journal)."""

    def issue(self, episode_id: str, group_id: str, instance_id: str, step: int) -> None:
        """It begins, or goes on."""
        ...

    def turns(self, episode_id: str) -> tuple[Turn, ...]:
        """What an earlier attempt has recorded of it."""
        ...

    def record_turn(self, episode_id: str, turns: Sequence[Turn]) -> None:
        """Keep the last of these, its turns so far."""
        ...

    def cut(self, episode_id: str, keep: int, why: str) -> None:
        """Forget all but the first `keep`."""
        ...

    async def kept(self, episode_id: str) -> None:
        """Wait until what was recorded of it is safe: the next turn begins afterwards."""
        ...


class NoDiary:
    """Keeps nothing: an episode that is interrupted begins again."""

    def issue(self, episode_id: str, group_id: str, instance_id: str, step: int) -> None:
        """Not noted."""

    def turns(self, episode_id: str) -> tuple[Turn, ...]:
        """None."""
        return ()

    def record_turn(self, episode_id: str, turns: Sequence[Turn]) -> None:
        """Not kept."""

    def cut(self, episode_id: str, keep: int, why: str) -> None:
        """There is nothing to forget."""

    async def kept(self, episode_id: str) -> None:
        """At once."""


def recorded_turns(diary: Diary, episode_id: str, version: int) -> tuple[Turn, ...]:
    """Turns that an episode goes on from: those before the first that weights have sampled which do not exist (any more)."""
    turns = diary.turns(episode_id)
    known = tuple(takewhile(lambda turn: turn.completion.newest <= version, turns))
    if len(known) < len(turns):
        newest = turns[len(known)].completion.newest
        diary.cut(episode_id, len(known), f"version {newest} does not exist: the policy is at {version}")
    return known

"""What episodes are made with and where they play: machines, graders, ids and seeds; carries nothing out."""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from sandbox import Image, Sandbox, SandboxError
from tasks import Task, Verdict

from .config import RolloutConfig
from .diary import Diary, NoDiary
from .jury import Jury
from .opening import Opening
from .prompt import Chat
from .reward import Channel
from .types import Episode, Policy, Turn
from .user import User


class Machines(Protocol):
    """Where an episode's machine comes from (sandbox.Pool)."""

    def lease(
        self, image: Image, *, like: Sandbox | None = None, begun: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[Sandbox]:
        """A fresh machine, torn down at the end of the block whatever happens; with the files of another one where that is given.

        begun: called when there is room, before it is ready.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rig:
    """What every episode of a run is made with."""

    chat: Chat
    machines: Machines
    diff: Callable[[Sandbox, Image], Awaitable[str]]
    """What the agent changed, taken inside its sandbox."""
    grade: Callable[[Task, str], Awaitable[Verdict]]
    """A patch -> a fresh sandbox -> a verdict."""
    rollout: RolloutConfig
    context: int
    """Tokens of one episode, prompt and observations included."""
    command_seconds: float
    episode_seconds: float
    """From the moment that its machine is there to the last turn; the machine must live longer, so that its diff can still be taken."""
    forks: Machines | None = None
    """Machines for rollout.continuations: others than `machines`, or episodes that hold one each would wait for each other's forks."""
    retry_seconds: float = 1.0
    """Wait before an attempt that follows a failure of the infrastructure; doubled each time."""
    diary: Diary = field(default_factory=NoDiary)
    sees_end: bool = False
    """rollout.visible_tests are run once more after the last turn (reward.kind visible_tests)."""
    channel: Channel | None = None
    """What episodes are rewarded for; None: the hidden tests."""
    jury: Jury | None = None
    """Who votes on their turns; None: nobody."""
    user: User | None = None
    """Who answers questions; None: nobody can be asked."""
    elsewhere: "Elsewhere | None" = None
    """Who plays the episodes on other machines (dispatch.Dispatcher); None: they play here."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Which episode: its ids, and the seed that all its sampling seeds derive from."""

    episode_id: str
    group_id: str
    seed: int = 0
    step: int = 0
    prefix: tuple[Turn, ...] = ()
    """Recorded turns from which it starts: carried out again, seen by the policy, no part of what it is credited for."""


NOWHERE = "there are no machines in this process: its episodes play on the nodes of a cluster"


class Nowhere:
    """The machines of a process that has none: its episodes play elsewhere."""

    def lease(
        self, image: Image, *, like: Sandbox | None = None, begun: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[Sandbox]:
        """Never given."""
        raise SandboxError(NOWHERE)

    async def diff(self, sandbox: Sandbox, image: Image) -> str:
        """There is no sandbox to take it in."""
        raise SandboxError(NOWHERE)

    async def grade(self, task: Task, patch: str) -> Verdict:
        """There is no machine to grade in."""
        raise SandboxError(NOWHERE)


def remote_rig(chat: Chat, rollout: RolloutConfig, context: int, elsewhere: "Elsewhere") -> Rig:
    """What the episodes of a run are made with that others play."""
    none = Nowhere()
    return Rig(chat, none, none.diff, none.grade, rollout, context, 0.0, 0.0, elsewhere=elsewhere)


class Elsewhere(Protocol):
    """Plays episodes on other machines."""

    async def __call__(self, policy: Policy, task: Task, rig: Rig, slot: Slot) -> Episode:
        """As rollout.run_episode does here."""
        ...


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one attempt plays: its machine, and the record it writes its turns to."""

    sandbox: Sandbox
    rig: Rig
    slot: Slot
    turns: list[Turn]
    deadline: float
    """By the monotonic clock."""
    opening: Opening | None = None
    """Where the first answer was begun before the machine was there."""

    @property
    def played(self) -> list[Turn]:
        """All turns so far, those of the prefix included: what the limits count."""
        return [*self.slot.prefix, *self.turns]


def derive_seed(slot: Slot, turn: int) -> int:
    """The sampling seed of one turn: the same in every attempt and after every resume, another one for every sibling."""
    digest = hashlib.blake2b(f"{slot.seed}/{slot.episode_id}/{turn}".encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big") >> 1

"""The knobs of interactive tasks; knows their names, nothing of what they do."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .config_objective import Section
from .config_reward import JudgeConfig


class UserConfig(Section):
    """A simulated user who knows more than the statement tells (pipeline/user.py)."""

    kind: Literal["scripted", "model"] = "scripted"
    """Rules, or a model behind any OpenAI-compatible server."""
    ask: bool = True
    """The agent has the tool ask_user. false: the statement lacks the same, and nobody can be asked (for comparison)."""
    withhold: float = Field(0.5, ge=0, le=1)
    """Share of the statement's sentences and list items, but the first, that only the user knows (pipeline/brief.py)."""
    seed: int = 0
    """Which of them, together with the task's id; and when a scripted user drifts."""
    drift: float = Field(0.0, ge=0, le=1)
    """With kind scripted: how likely an answer contradicts, invents or repeats. For experiments."""
    keep_drifted: bool = False
    """Train on episodes whose user has drifted as well. For experiments."""
    server: JudgeConfig | None = None
    """With kind model."""

    @property
    def longest_wait(self) -> float:
        """Seconds that one answer may take."""
        return self.server.attempts * self.server.request_seconds if self.server else 0.0

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        unread = [*(() if self.kind == "scripted" else ("drift",)), *(() if self.ask else ("kind", "drift", "keep_drifted", "server"))]
        for key in unread:
            if getattr(self, key) != type(self).model_fields[key].default:
                where = "user.ask: false" if not self.ask else f"user.kind {self.kind}"
                raise ValueError(f"user.{key} = {getattr(self, key)!r} is not read with {where}")
        if (self.kind == "model") != (self.server is not None):
            needs = (
                "needs a server: set user.server.url, or user.server.path"
                if self.server is None
                else "reads no user.server: set user.kind: model"
            )
            raise ValueError(f"user.kind {self.kind} {needs}")
        return self

"""The knobs of the reward channel; knows their names, nothing of what they do."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .config_objective import Section
from .config_policy import PolicyConfig


class JudgeConfig(Section):
    """A model that reads diffs, behind any OpenAI-compatible server."""

    url: str
    model: str | None = None
    """None: the first that the server names."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds its key."""
    attempts: int = Field(4, ge=1)
    request_seconds: float = Field(120.0, gt=0)

    def server(self) -> PolicyConfig:
        """As chat_policy.py takes it."""
        return PolicyConfig(api="chat", **self.model_dump())


class RewardConfig(Section):
    """What an episode is rewarded for (pipeline/reward.py); the truth is always logged beside."""

    kind: Literal["hidden_tests", "noise", "fraction", "visible_tests", "diff", "judge"] = "hidden_tests"
    flip: float = Field(0.1, ge=0, le=0.5)
    """With kind noise: how likely the hidden tests' word is turned round."""
    judge: JudgeConfig | None = None
    """With kind judge."""

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        if self.kind != "noise" and self.flip != type(self).model_fields["flip"].default:
            raise ValueError(f"reward.flip is read only by reward.kind noise, not {self.kind}")
        if self.kind != "judge" and self.judge is not None:
            raise ValueError(f"reward.judge is read only by reward.kind judge, not {self.kind}")
        if self.kind == "judge" and self.judge is None:
            raise ValueError("reward.kind judge needs a server: set reward.judge.url")
        return self

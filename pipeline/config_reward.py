"""The knobs of the reward channel; knows their names, nothing of what they do."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from .config_objective import Section
from .config_policy import PolicyConfig


class JudgeConfig(Section):
    """A model that is asked in words: behind any OpenAI-compatible server, or a folder that vLLM serves here (pipeline/served.py)."""

    url: str | None = None
    """A running server, or ..."""
    path: Path | None = None
    """... a model's folder: a vLLM server of its own on this machine, beside the policy's, as long as the run."""
    context: int = Field(4096, ge=256)
    """With path: tokens of question and answer."""
    memory_gb: float = Field(1.0, gt=0)
    """With path: its KV-cache on the CPU; on a GPU the fraction below, which policy.gpu_fraction has to leave free."""
    gpu_fraction: float = Field(0.2, gt=0, le=1)
    model: str | None = None
    """With url: its name there; None: the first that the server names."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds its key."""
    attempts: int = Field(4, ge=1)
    request_seconds: float = Field(120.0, gt=0)

    def server(self, url: str) -> PolicyConfig:
        """As chat_policy.py takes it."""
        keys = ("model", "key_env", "attempts", "request_seconds")
        return PolicyConfig(api="chat", url=url, **{key: getattr(self, key) for key in keys})

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("a model that is asked needs either url, a running server, or path, the folder of a model to serve here")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url = {self.url!r} must begin with http:// or https://")
        unread = ("context", "memory_gb", "gpu_fraction") if self.path is None else ("model", "key_env")
        for key in unread:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is read only with {'path, a model to serve here' if self.path is None else 'url, a running server'}"
                )
        return self


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
            raise ValueError("reward.kind judge needs a server: set reward.judge.url, or reward.judge.path")
        return self

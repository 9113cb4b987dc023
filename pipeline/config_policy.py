"""The knobs of the engine that samples; knows their names, nothing of what they do."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .config_objective import Section

CHAT_KEYS = ("key_env", "body", "attempts", "requests_per_minute", "request_seconds")
"""Keys of PolicyConfig that only a chat server's client reads."""
ENGINE_KEYS = ("dtype", "memory_gb", "gpu_fraction", "tensor_parallel", "engines", "seed")
"""Keys of PolicyConfig that only an engine of our own reads."""

TOKEN_KEYS = ("publish_tolerance", "in_flight", "transfer", "sleep")
"""Keys of PolicyConfig that a chat server, which takes no weights, does not read."""


class PolicyConfig(Section):
    """The engine that samples."""

    api: Literal["tokens", "chat"] = "tokens"
    """tokens: vLLM, ids and log-probs, for training. chat: any OpenAI-compatible server at `url`, text alone, for evaluation."""
    url: str | None = None
    """A running server; None starts vLLM."""
    model: str | None = None
    """Its name at a chat server; None: the first that the server names."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds a chat server's key; it is written nowhere."""
    body: dict[str, str | int | float | bool] = Field({})
    """More fields of a chat request, or other values for ours (max_completion_tokens, reasoning_effort ...)."""
    attempts: int = Field(8, ge=1)
    """Of one chat request, with waits that double from 1 s or are what the server asks for."""
    requests_per_minute: float | None = Field(None, gt=0)
    """To a chat server, over all episodes."""
    request_seconds: float = Field(600.0, gt=0)
    """Limit of one chat request."""
    price_in: float = Field(0.0, ge=0)
    """Of a million tokens of prompts, for the cost of an evaluation ..."""
    price_out: float = Field(0.0, ge=0)
    """... and of answers."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_requests: int = Field(32, ge=1)
    memory_gb: float = Field(2.0, gt=0)
    """KV-cache on the CPU; on a GPU the fraction below."""
    gpu_fraction: float = Field(0.9, gt=0, le=1)
    tensor_parallel: int = Field(1, ge=1)
    engines: int = Field(1, ge=1)
    """Servers with the same weights, each on tensor_parallel GPUs of its own; the episodes of a group go to the same one."""
    in_flight: bool = False
    """While weights are published, requests that run are frozen and go on with the new ones (each token keeps its version); false: the
    publish waits until they have ended. Read where episodes run meanwhile (train.max_lag)."""
    publish_tolerance: float = Field(0.08, gt=0)
    """Mean |log p(learner) - log p(engine)| over probe tokens after a publish; above it the run stops."""
    transfer: Literal["folder", "nccl", "ipc"] = "folder"
    """How new weights reach it: a folder in shared memory (or on a disk that both see), or from GPU to GPU: a broadcast (nccl), memory
    that both map (ipc, where they share GPUs)."""
    sleep: bool = False
    """While the learner takes its step the engine gives up its memory (vLLM's sleep mode): for both on the same GPUs. On a CPU nothing
    is given up."""
    seed: int = 0

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        """A key that the chosen server does not read would silently do nothing."""
        chat = self.api == "chat"
        unread = [*(() if chat else CHAT_KEYS), *(ENGINE_KEYS if chat or self.url else ()), *(TOKEN_KEYS if chat else ())]
        for key in unread:
            if getattr(self, key) != type(self).model_fields[key].default:
                where = f"policy.api {self.api}" + (" with policy.url" if self.url and not chat else "")
                raise ValueError(f"policy.{key} = {getattr(self, key)!r} is not read by {where}")
        if self.engines > 1 and self.transfer != "folder":
            raise ValueError(f"policy.transfer: {self.transfer} reaches one engine, and policy.engines is {self.engines}: use folder")
        return self


def engine_defaults() -> dict[str, str | int | float]:
    """What ENGINE_KEYS are where nobody sets them."""
    return {key: PolicyConfig.model_fields[key].default for key in ENGINE_KEYS}

"""A policy behind any OpenAI-compatible server, for evaluation: messages in, text out; knows nothing of tasks, tools or training.

Its "ids" are the bytes of ByteTemplate, from which the messages are read back, and it has no log-probs: what it sampled cannot be
trained on.
Passing failures (transport, 408, 429, 5xx, an answer that is none) are tried again, as long as a server asks for by Retry-After; what does
not pass is a PolicyError, so the episode is infra and never a reward of 0. Left out: streaming, tool calls of the server's own.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from .config import Config, PolicyConfig
from .prompt import ByteTemplate
from .types import Completion, ContextFull, PolicyError
from .weights import Digests

LONGEST_WAIT = 300.0
"""Seconds before another attempt, whatever a server asks for."""
_PASSING = (408, 409, 425, 429)
_TOO_LONG = ("context length", "context_length", "maximum context", "too many tokens", "prompt is too long")


class ChatPolicy:
    """One server, one model."""

    first_wait = 1.0
    """Seconds before the second attempt; doubled each time."""

    def __init__(self, client: httpx.AsyncClient, settings: PolicyConfig, model: str, temperature: float) -> None:
        self.version = 0
        self._client, self._settings, self._model, self._temperature = client, settings, model, temperature
        self._template = ByteTemplate()
        self._pace = _Pace(settings.requests_per_minute)

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """One answer; ContextFull where the server takes no longer conversation, PolicyError when it fails."""
        body = {"model": self._model, "messages": self._messages(prompt), "temperature": self._temperature, "max_tokens": max_tokens}
        found = await self._post({**body, "seed": seed, **self._settings.body})
        choice, usage = found["choices"][0], found.get("usage")
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise PolicyError(f"{self._client.base_url}: the answer's content is no text: {text!r:.300}")
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair, which JSON can hold and no file
        ids = (*self._template.encode(text), self._template.turn_end)
        counted = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        return Completion(ids, (0.0,) * len(ids), text, 0, choice.get("finish_reason") != "length", *counted)

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """A server of this kind has none."""
        raise PolicyError("an OpenAI-compatible server gives no log-probs of a prompt: training needs policy.api: tokens")

    async def load(self, folder: object, version: int) -> Digests:
        """A server of this kind takes no weights."""
        raise PolicyError("an OpenAI-compatible server takes no weights: training needs policy.api: tokens")

    async def close(self) -> None:
        """Close the connections; the server is somebody else's."""
        await self._client.aclose()

    def _messages(self, prompt: Sequence[int]) -> list[dict[str, str]]:
        """The conversation that ByteTemplate wrote: system, user, answer, user ...; the head of the next answer is empty."""
        texts = [self._template.decode(part) for part in _split(prompt, 257)[1:-1]]
        roles = ["system", *("user" if place % 2 == 0 else "assistant" for place in range(len(texts) - 1))]
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._settings.attempts), wait=self._wait, retry=retry_if_exception_type(_Passing), reraise=True
        )
        try:
            found: dict[str, Any] = await retrying(self._send, body)
        except _Passing as failure:
            raise PolicyError(f"{self._client.base_url}: {failure} ({self._settings.attempts} attempts)") from failure
        return found

    async def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        await self._pace.wait()
        try:
            response = await self._client.post("chat/completions", json=body)
        except httpx.RequestError as failure:
            raise _Passing(f"{type(failure).__name__}: {failure}") from failure
        if response.status_code in _PASSING or response.status_code >= 500:
            raise _Passing(f"{response.status_code}: {response.text[:300]}", _asked_wait(response))
        if response.is_error:
            if any(phrase in response.text.lower() for phrase in _TOO_LONG):
                raise ContextFull(response.text[:300])
            raise PolicyError(f"{self._client.base_url}: {response.status_code}: {response.text[:300]}")
        return _checked(response)

    def _wait(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.seconds if isinstance(failure, _Passing) else None
        return min(LONGEST_WAIT, self.first_wait * 2 ** (state.attempt_number - 1) if asked is None else asked)


class _Passing(Exception):
    """A failure that may pass; `seconds` is what the server asks to wait."""

    def __init__(self, what: str, seconds: float | None = None) -> None:
        super().__init__(what)
        self.seconds = seconds


class _Pace:
    """Lets through so many a minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Until it is one's turn."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now)


def _split(ids: Sequence[int], mark: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for value in ids:
        if value == mark:
            parts.append([])
        else:
            parts[-1].append(value)
    return parts


def _checked(response: httpx.Response) -> dict[str, Any]:
    """An answer with a message in it; anything else may be a proxy's page, and passes."""
    try:
        found = response.json()
        found["choices"][0]["message"].get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Passing(f"not a chat completion: {response.text[:300]!r}") from None
    return dict(found)


def _count(usage: object, key: str) -> int:
    """Tokens as the server counts them; 0 where it does not say."""
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0


def _asked_wait(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, which may be a date."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


async def start_chat_policy(config: Config) -> ChatPolicy:
    """The policy of policy.url."""
    if config.policy.url is None:
        raise ValueError("policy.url is missing: policy.api: chat needs a running server")
    return await start_chat(config.policy, config.rollout.temperature)


async def start_chat(settings: PolicyConfig, temperature: float) -> ChatPolicy:
    """The server at settings.url; its model is settings.model, or the first that it names. The key comes from the environment alone."""
    assert settings.url is not None
    key = os.environ.get(settings.key_env, "")
    client = httpx.AsyncClient(
        base_url=f"{settings.url.rstrip('/').removesuffix('/v1')}/v1/",
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(settings.request_seconds, connect=10, pool=None),
        limits=httpx.Limits(max_connections=settings.max_requests),
    )
    try:
        model = settings.model or await _first_model(client)
    except BaseException:
        await client.aclose()
        raise
    return ChatPolicy(client, settings, model, temperature)


async def _first_model(client: httpx.AsyncClient) -> str:
    try:
        response = await client.get("models")
        return str(response.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise PolicyError(
            f"{client.base_url}models names no model ({type(error).__name__}: {error}): is it an OpenAI-compatible server? "
            "Else set policy.model, or the judge's or user's"
        ) from error

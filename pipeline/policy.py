"""The policy that a vLLM server samples: token ids in, token ids and log-probs out; knows nothing of tasks, tools or training.

Every sampling parameter is sent with each request, and the first thing that a policy does is to prove that the server neither
cuts nor bends the distribution (finding F2: an engine that silently switched on top_k first raised scores and then wrecked training).

New weights are read from a folder without a restart (worker.py), also while requests run: they end first, or are frozen and go on
with the new weights (policy.in_flight). Several servers are one policy in engines.py.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from .engine import NAME, Engine
from .prompt import Template
from .types import Completion, EngineDied, PolicyError
from .weights import Digests

ATTEMPTS = 4
"""Of a request that the transport or the server fails, with waits of 1, 2 and 4 s."""
ADAPTER_CONFIG = "adapter_config.json"
"""A folder with it holds adapters, not a model."""
CUT = -1000.0
"""Below this a log-prob is a removed token: vLLM writes -9999 for minus infinity."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: temperature, and nothing else."""

    temperature: float
    stop_ids: tuple[int, ...]

    def parameters(self, max_tokens: int, seed: int) -> dict[str, object]:
        """vLLM's SamplingParams, with every knob that could bend the distribution switched off by name."""
        return {
            "n": 1,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_tokens": 0,
            "logit_bias": None,
            "bad_words": None,
            "allowed_token_ids": None,
            "stop": None,
            "stop_token_ids": list(self.stop_ids),
            "ignore_eos": False,
            "max_tokens": max_tokens,
            "seed": seed,
            "logprobs": 0,
            "detokenize": False,
        }


class VllmPolicy:
    """A server, ours or another's, and the version of its weights."""

    retry_seconds = 1.0
    """Wait before the second attempt of a request; doubled each time."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        template: Template,
        sampling: Sampling,
        engine: Engine | None = None,
        *,
        requests: int = 32,
        in_flight: bool = False,
        transfer: str = "folder",
    ) -> None:
        self.version = 0
        self._transfer = transfer
        self._client = client
        self._template = template
        self._sampling = sampling
        self._engine = engine
        self._room = asyncio.Semaphore(requests)  # and no limit of connections: while a pause holds all of these, its end must get through
        self._in_flight = in_flight
        self._scoring = asyncio.Lock()
        self._model = NAME
        """Whose answers are asked for: the model's, or its newest adapter's."""

    @property
    def url(self) -> str:
        """Of the server."""
        return str(self._client.base_url).rstrip("/")

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """One completion; PolicyError when the engine fails, EngineDied when our own is gone."""
        choice = (await self._generate(prompt, self._sampling.parameters(max_tokens, seed)))["choices"][0]
        ids = tuple(choice["token_ids"])
        logprobs = tuple(float(entry["logprob"]) for entry in choice["logprobs"]["content"])
        if not ids or len(logprobs) != len(ids) or choice["finish_reason"] not in ("stop", "length"):
            raise PolicyError(f"the server gave {len(ids)} tokens, {len(logprobs)} log-probs and ended by {choice['finish_reason']!r}")
        (_, version), *later = [(int(span["start"]), int(span["version"])) for span in choice["weight_versions"]]
        stopped = choice["finish_reason"] == "stop"
        return Completion(ids, logprobs, self._template.decode(ids), version, stopped, later=tuple(later))

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """log p(ids[t] | ids[:t]) at the sampling temperature, shape (T,), 0 at t = 0.

        One request at temperature 1. At others one for each token that is wanted (vLLM scores a prompt at temperature 1 only).
        """
        if self._sampling.temperature == 1.0:
            return await self.score_prompt(ids)
        wanted = [t for t in range(1, len(ids)) if wanted_T is None or wanted_T[t]]
        scores_T = np.zeros(len(ids), np.float32)
        scores_T[wanted] = [score for (score,) in await asyncio.gather(*(self.score_next(ids[:t], [ids[t]]) for t in wanted))]
        return scores_T

    async def score_prompt(self, ids: Sequence[int]) -> np.ndarray:
        """log-probs of a prompt's own tokens at temperature 1, before any sampling parameter; shape (T,), 0 at t = 0."""
        parameters = self._sampling.parameters(1, 0) | {"prompt_logprobs": 0}
        async with self._scoring:  # two at once kill vLLM's CPU worker where it can serve adapters, whichever model is asked
            found = (await self._generate(ids, parameters))["prompt_logprobs"]
        return np.array([0.0, *(_entry(one, ids[t + 1]) for t, one in enumerate(found[1:]))], np.float32)

    async def score_next(self, prompt: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """log-probs of candidates for the next token as sampling sees them, after every sampling parameter."""
        wanted = [*candidates, candidates[0]]  # one more: the server cuts the list as if the sampled token were one of them
        extra = {"logprobs": len(wanted), "logprob_token_ids": wanted}
        choice = (await self._generate(prompt, self._sampling.parameters(1, 0) | extra))["choices"][0]
        first = choice["logprobs"]["content"][0]
        found = {one["token_id"]: float(one["logprob"]) for one in [first, *first["top_logprobs"]]}
        return [found[candidate] for candidate in candidates]

    async def load(self, folder: Path, version: int) -> Digests:
        """New weights and an empty prefix cache; what the engine's first rank holds then. Requests may be running (_paused).

        With policy.transfer the weights are there already, and only what follows is done.
        """
        adapters = (folder / ADAPTER_CONFIG).is_file()
        async with self._paused():
            if adapters:
                await self._load_adapters(folder, version)
            elif self._transfer == "folder":
                await self._call_workers("load_folder", _absolute(folder))
            await self._call_workers("renew_heads")
            if not (await self._post("/reset_prefix_cache?reset_running_requests=true", {})).get("success"):
                raise PolicyError("the prefix cache could not be emptied")
            await self._set_version(version)
            return dict((await self._call_workers("digest_adapters" if adapters else "digest_weights"))[0])

    async def _load_adapters(self, folder: Path, version: int) -> None:
        """Under a new name each time, so that nothing that was cached for the ones before can be found."""
        before, self._model = self._model, f"{NAME}-{version}"
        if before != NAME:
            await self._post("/v1/unload_lora_adapter", {"lora_name": before})
        await self._post("/v1/load_lora_adapter", {"lora_name": self._model, "lora_path": _absolute(folder)})

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """No token is sampled in the block, and requests that come in it wait. Those that ran have ended before it (mode wait), or are
        frozen (mode keep, policy.in_flight): they go on afterwards, what they hold in the cache computed again by the new weights.

        The server goes on however the block ends: a failed update stops the run, and no request shall hang until then.
        """
        try:
            await self._post(f"/pause?mode={'keep' if self._in_flight else 'wait'}", {})
            yield
        finally:
            await asyncio.shield(self._post("/resume", {}))

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """Within, the engine's memory is free: its weights wait in the host's, its cache is gone. No request may be running.

        It wakes however the block ends: what comes next may be an evaluation.
        """
        await self._post("/sleep?level=1", {})
        try:
            yield
        finally:
            await asyncio.shield(self._post("/wake_up", {}))

    async def close(self) -> None:
        """Stop the server, if it is ours."""
        await self._client.aclose()
        if self._engine is not None:
            await asyncio.shield(self._engine.stop())

    async def prepare(self) -> None:
        """Name the weights version 0 and prove that sampling is unbiased."""
        await self._set_version(0)
        await self._check_sampling()

    async def _call_workers(self, method: str, *arguments: str) -> list[Any]:
        """The answer of each of the engine's ranks to a method of worker.WeightLoader."""
        return list((await self._post("/collective_rpc", {"method": method, "args": arguments}))["results"])

    async def _set_version(self, version: int) -> None:
        await self._post("/update_weight_version", {"new_version": str(version)})
        self.version = version

    async def _check_sampling(self) -> None:
        """What sampling sees must be softmax(logits / T) over the whole vocabulary.

        Candidates: the prompt's own tokens (a repetition penalty would move them), and far-apart ids (top_k, top_p or min_p
        would remove them).
        """
        prompt = self._template.start("You add numbers.", "What is 1 + 1?")
        candidates = sorted({*prompt[:4], *prompt[-4:], *range(40, 250, 30)})
        seen = np.array(await self.score_next(prompt, candidates))
        raw = np.array([(await self.score_prompt([*prompt, candidate]))[-1] for candidate in candidates])
        bent = (seen - seen.mean()) - (raw - raw.mean()) / self._sampling.temperature
        if seen.min() < CUT or np.abs(bent).max() > 0.5 / min(self._sampling.temperature, 1.0):
            raise PolicyError(
                "the server does not sample from the plain distribution (top_k, top_p, min_p or a penalty there? raw log-probs?): "
                f"log-probs of {candidates} are {seen.round(2).tolist()}, at temperature 1 without parameters {raw.round(2).tolist()}"
            )

    async def _generate(self, ids: Sequence[int], parameters: Mapping[str, object]) -> dict[str, Any]:
        body = {"model": self._model, "token_ids": list(ids), "sampling_params": parameters}
        async with self._room:
            return await self._post("/inference/v1/generate", body)

    async def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """The JSON of an answer. Transport failures and 5xx are tried again, then they are a PolicyError like everything else."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(self.retry_seconds),
            retry=retry_if_exception_type(_Passing),
            reraise=True,
        )
        try:
            response: httpx.Response = await retrying(self._send, path, body)
        except _Passing as failure:
            raise PolicyError(f"{path}: {failure}{self._last_words()}") from failure
        if response.is_error:
            raise PolicyError(f"{path}: {response.status_code}: {response.text[:300]}")
        return dict(response.json()) if response.headers.get("content-type") == "application/json" else {}

    async def _send(self, path: str, body: Mapping[str, object]) -> httpx.Response:
        if self._engine is not None and not self._engine.alive:
            raise EngineDied(f"the vLLM server has died{self._last_words()}")
        try:
            response = await self._client.post(path, json=body)
        except httpx.TransportError as failure:
            raise _Passing(f"{type(failure).__name__}: {failure}") from failure
        if response.status_code >= 500:
            raise _Passing(f"{response.status_code}: {response.text[:300]}")
        return response

    def _last_words(self) -> str:
        return f"; the end of {self._engine.log}:\n{self._engine.last_words()}" if self._engine else ""


class _Passing(Exception):
    """A failure that may pass."""


def _absolute(folder: Path) -> str:
    """The server has a working directory of its own."""
    return str(folder.absolute())


def _entry(found: Mapping[str, Any], token: int) -> float:
    return float(found[str(token)]["logprob"])

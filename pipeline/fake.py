"""Fakes, named by what they do; shipped, so that users can test their own parts without a model or a machine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from sandbox import FakeSandbox, Image, Sandbox

from .prompt import Chat
from .types import Batch, Completion, Likeliest, Policy, PolicyError, Sample
from .weights import Digests


class MemoryMachines:
    """Leases what `make` makes, and remembers it."""

    def __init__(self, make: Callable[[], FakeSandbox] = FakeSandbox) -> None:
        self.made: list[FakeSandbox] = []
        self._make = make

    @asynccontextmanager
    async def lease(self, image: Image, *, like: Sandbox | None = None, begun: Callable[[], None] | None = None) -> AsyncIterator[Sandbox]:
        """A new machine, closed at the end of the block; with the files of another fake where that is given."""
        if begun is not None:
            begun()
        sandbox = self._make()
        self.made.append(sandbox)
        try:
            if isinstance(like, FakeSandbox):
                await sandbox.copy_from(like)
            yield sandbox
        finally:
            await asyncio.shield(sandbox.close())


class FailingPolicy:
    """Fails the first `failures` requests, then passes them on."""

    version = 0

    def __init__(self, failures: int, then: Policy) -> None:
        self.left = failures
        self._then = then

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """PolicyError while failures are left."""
        if self.left > 0:
            self.left -= 1
            raise PolicyError("the engine is gone")
        return await self._then.sample(prompt, max_tokens, seed)

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """Those of the other policy."""
        return await self._then.logprobs(ids, wanted_T)

    async def load(self, folder: Path, version: int) -> Digests:
        """Passed on."""
        return await self._then.load(folder, version)

    async def close(self) -> None:
        """Passed on."""
        await self._then.close()


class SlowPolicy(FailingPolicy):
    """Takes `seconds` for every answer."""

    def __init__(self, seconds: float, then: Policy) -> None:
        super().__init__(0, then)
        self._seconds = seconds

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """Late."""
        await asyncio.sleep(self._seconds)
        return await super().sample(prompt, max_tokens, seed)


class SoftmaxPolicy:
    """Chooses each answer among a few fixed texts; p = softmax(weights), the same in every turn.

    The whole log-prob of the choice lies on the answer's first token, the other tokens have log-prob 0 (they follow from it).
    """

    def __init__(self, chat: Chat, texts: Sequence[str]) -> None:
        self.chat = chat
        self.texts = tuple(texts)
        self.weights_A = np.zeros(len(texts))
        """A answers."""
        self.version = 0

    def log_p(self) -> np.ndarray:
        """Shape (A,)."""
        return np.asarray(self.weights_A - np.logaddexp.reduce(self.weights_A))

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """One of the texts, drawn with the seed."""
        log_p_A = self.log_p()
        choice = int(np.random.default_rng(seed).choice(len(self.texts), p=np.exp(log_p_A)))
        ids = tuple(self.chat.write(self.texts[choice]))
        logprobs = (float(log_p_A[choice]), *(0.0 for _ in ids[1:]))
        return Completion(ids, logprobs, self.texts[choice], self.version, stopped=True)

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """log-probs of the answers found in ids, on their first tokens."""
        return score_answers(self, list(ids))

    async def load(self, folder: Path, version: int) -> Digests:
        """The weights that SoftmaxLearner.export wrote."""
        self.weights_A = np.load(folder / "weights.npy")
        self.version = version
        return self.digests()

    def digests(self) -> Digests:
        """Of its one weight."""
        return {"weights": self.weights_A.tobytes().hex()}

    async def close(self) -> None:
        """Nothing to stop."""


def score_answers(policy: SoftmaxPolicy, ids: list[int]) -> np.ndarray:
    """Shape (T,): log p of each answer that occurs in ids, at its first token."""
    scores_T = np.zeros(len(ids), np.float32)
    for start, choice in find_answers(policy, ids):
        scores_T[start] = policy.log_p()[choice]
    return scores_T


def find_answers(policy: SoftmaxPolicy, ids: list[int]) -> list[tuple[int, int]]:
    """(where it begins, which answer) for every answer in ids."""
    written = [policy.chat.write(text) for text in policy.texts]
    return [
        (start, choice) for start in range(len(ids)) for choice, answer in enumerate(written) if ids[start : start + len(answer)] == answer
    ]


class SoftmaxLearner:
    """Exact policy gradient of sum_t mask_t A_t log p_t / tokens on a SoftmaxPolicy's weights, by plain ascent."""

    def __init__(self, chat: Chat, texts: Sequence[str], lr: float = 5.0) -> None:
        self.model = SoftmaxPolicy(chat, texts)
        self._lr = lr

    def step(self, batch: Batch) -> dict[str, float]:
        """One ascent step over all answers of the batch."""
        gradient_A = np.zeros_like(self.model.weights_A)
        p_A = np.exp(self.model.log_p())
        answers = 0
        for sample in batch.samples:
            for start, choice in find_answers(self.model, sample.ids_T.tolist()):
                if sample.mask_T[start]:
                    answers += 1
                    gradient_A += float(sample.advantages_T[start]) * (np.eye(len(p_A))[choice] - p_A)
        if answers:
            self.model.weights_A = self.model.weights_A + self._lr * gradient_A / answers
        return {"loss/gradient_norm": float(np.linalg.norm(gradient_A) / max(answers, 1))}

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """As the policy scores them, with this learner's weights."""
        return [score_answers(self.model, sample.ids_T.tolist()) for sample in samples]

    def entropies(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Of the choice between the answers, at each answer's first token."""
        log_p_A = self.model.log_p()
        entropy = -float(np.exp(log_p_A) @ log_p_A)
        return [np.where(score_answers(self.model, sample.ids_T.tolist()) != 0.0, entropy, 0.0) for sample in samples]

    def likeliest(self, samples: Sequence[Sample], count: int) -> list[Likeliest]:
        """ValueError: texts are chosen here, not tokens."""
        raise ValueError("a choice among texts has no likeliest tokens")

    def export(self, folder: Path, *, whole: bool = True) -> Digests:
        """weights.npy."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "weights.npy", self.model.weights_A)
        return self.model.digests()

    def save(self, folder: Path) -> None:
        """The same: there is no optimiser state."""
        self.export(folder)

    def restore(self, folder: Path) -> None:
        """From weights.npy."""
        self.model.weights_A = np.load(folder / "weights.npy")

    def close(self) -> None:
        """Nothing to stop."""

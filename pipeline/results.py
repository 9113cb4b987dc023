"""Episodes -> the figures of an evaluation, with intervals, as JSON and as rows of a table; knows nothing of how they were made."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from tasks import Evidence, Outcome

from .statistics import mean_and_error, pass_at, wilson
from .types import Episode, Stop

FILE = "summary.json"


@dataclass(frozen=True, slots=True)
class Results:
    """One evaluation. An instance without a verdict (infra) counts as not resolved here, and never in training."""

    policy: str
    instances: int
    resolved: int
    infra: int
    low: float
    """95 % Wilson interval of the resolve rate."""
    high: float
    submitted: float
    """Share of episodes that ended with submit."""
    turns: float
    """Mean of an episode."""
    malformed: float
    """Share of turns without a readable action."""
    tokens: int
    """Sampled, over all episodes."""
    tool_calls: int
    seconds: float
    """Wall time of the work, over all runs of the command."""
    outcomes: dict[str, int]
    official: int = 0
    """Resolved by the official harness' parser alone, on the same logs; it differs where a verdict is suspect."""
    audited: int = 0
    """Resolved patches on which held-out tests were run."""
    log_only: int = 0
    """Verdicts that rest on the log alone, without a witness."""
    pass_at: dict[str, float] = field(default_factory=dict)
    """k -> the chance that one of k attempts resolves a task; empty where each was attempted once."""
    error: float | None = None
    """Standard error of pass@1 over runs."""
    tokens_in: int = 0
    """Of prompts, over all turns."""
    cost: float = 0.0
    """Of all tokens, at policy.price_in and policy.price_out."""

    @property
    def rate(self) -> float:
        """Resolved / instances: the official denominator, in which a failure of the infrastructure is not resolved."""
        return self.resolved / self.instances if self.instances else 0.0

    @property
    def clean_rate(self) -> float:
        """Resolved / instances that have a verdict."""
        graded = self.instances - self.infra
        return self.resolved / graded if graded else 0.0

    def row(self) -> dict[str, str]:
        """What a table shows of it."""
        per_second = 1 / self.seconds if self.seconds else 0.0
        differs = f" (official: {self.official})" if self.official != self.resolved else ""
        return {
            "resolved": f"{self.resolved}/{self.instances}{differs}{f' ({self.log_only} by the log only)' if self.log_only else ''}",
            "rate (95 %)": f"{100 * self.rate:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})",
            "without infra": self._clean(),
            **{f"pass@{k}": self._pass_at(k) for k in self.pass_at},
            "submitted": f"{100 * self.submitted:.0f} %",
            "turns": f"{self.turns:.1f}",
            "malformed": f"{100 * self.malformed:.0f} %",
            "tokens/s": f"{self.tokens * per_second:.0f}" if self.tokens else "-",
            **({"cost": f"{self.cost:.2f} for {self.tokens_in:,} + {self.tokens:,} tokens"} if self.cost else {}),
            "sandbox calls/s": f"{self.tool_calls * per_second:.1f}",
            "infra": str(self.infra),
            "wall": f"{self.seconds:.0f} s",
        }

    def _clean(self) -> str:
        low, high = wilson(self.resolved, self.instances - self.infra)
        return f"{100 * self.clean_rate:.1f} % ({100 * low:.1f} to {100 * high:.1f}), {self.infra} left out"

    def _pass_at(self, k: str) -> str:
        error = f" +- {100 * self.error:.1f}" if k == "1" and self.error is not None else ""
        return f"{100 * self.pass_at[k]:.1f}{error} %"


def summarise(policy: str, episodes: Sequence[Episode], seconds: float) -> Results:
    """The figures of some episodes, one an instance."""
    outcomes = Counter(episode.verdict.outcome for episode in episodes if episode.verdict)
    turns = [turn for episode in episodes for turn in episode.turns]
    count = max(len(episodes), 1)
    low, high = wilson(outcomes[Outcome.RESOLVED], len(episodes))
    rates, error = pass_rates(episodes)
    return Results(
        policy=policy,
        instances=len(episodes),
        resolved=outcomes[Outcome.RESOLVED],
        infra=outcomes[Outcome.INFRA] + sum(episode.verdict is None for episode in episodes),
        low=low,
        high=high,
        submitted=sum(episode.stop is Stop.SUBMITTED for episode in episodes) / count,
        turns=len(turns) / count,
        malformed=sum(turn.call is None for turn in turns) / max(len(turns), 1),
        tokens=sum(turn.completion.tokens_out or len(turn.completion.ids) for turn in turns),
        tool_calls=sum(turn.call is not None for turn in turns),
        seconds=seconds,
        outcomes={outcome.value: number for outcome, number in outcomes.items()},
        official=sum(bool(episode.verdict and episode.verdict.official) for episode in episodes),
        audited=sum(bool(episode.verdict and episode.verdict.audited) for episode in episodes),
        log_only=sum(bool(episode.verdict and episode.verdict.evidence is Evidence.LOG_ONLY) for episode in episodes),
        pass_at=rates,
        error=error,
        tokens_in=sum(turn.completion.tokens_in or len(turn.prompt) for turn in turns),
    )


def pass_rates(episodes: Sequence[Episode]) -> tuple[dict[str, float], float | None]:
    """pass@k for every k up to the attempts of each task, and the standard error of pass@1 over runs; nothing for one attempt each.

    Attempts that the infrastructure failed are left out; a task without any other is as well. Run r is the r-th attempt of every task.
    """
    attempts: dict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        if episode.reward is not None:
            attempts[episode.instance_id].append(episode.reward == 1.0)
    most = min(map(len, attempts.values()), default=0)
    if most < 2:
        return {}, None
    rates = {str(k): sum(pass_at(k, len(one), sum(one)) for one in attempts.values()) / len(attempts) for k in range(1, most + 1)}
    runs = [sum(one[run] for one in attempts.values()) / len(attempts) for run in range(most)]
    return rates, mean_and_error(runs)[1]


def save_results(folder: Path, results: Results) -> None:
    """Write summary.json in one piece."""
    part = folder / f"{FILE}.part"
    part.write_text(json.dumps(asdict(results), indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / FILE)


def load_results(folder: Path) -> Results | None:
    """What save_results wrote; None where nothing is finished."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Results(**{one.name: found[one.name] for one in fields(Results) if one.name in found})
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path}: not a summary of this version: {error}") from None

"""Episodes -> the figures of an evaluation, with intervals, as JSON and as rows of a table; knows nothing of how they were made."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tasks import Evidence, Outcome

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

    @property
    def rate(self) -> float:
        """Resolved / instances: pass@1."""
        return self.resolved / self.instances if self.instances else 0.0

    def row(self) -> dict[str, str]:
        """What a table shows of it."""
        per_second = 1 / self.seconds if self.seconds else 0.0
        differs = f" (official: {self.official})" if self.official != self.resolved else ""
        return {
            "resolved": f"{self.resolved}/{self.instances}{differs}{f' ({self.log_only} by the log only)' if self.log_only else ''}",
            "rate (95 %)": f"{100 * self.rate:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})",
            "submitted": f"{100 * self.submitted:.0f} %",
            "turns": f"{self.turns:.1f}",
            "malformed": f"{100 * self.malformed:.0f} %",
            "tokens/s": f"{self.tokens * per_second:.0f}" if self.tokens else "-",
            "sandbox calls/s": f"{self.tool_calls * per_second:.1f}",
            "infra": str(self.infra),
            "wall": f"{self.seconds:.0f} s",
        }


def summarise(policy: str, episodes: Sequence[Episode], seconds: float) -> Results:
    """The figures of some episodes, one an instance."""
    outcomes = Counter(episode.verdict.outcome for episode in episodes if episode.verdict)
    turns = [turn for episode in episodes for turn in episode.turns]
    count = max(len(episodes), 1)
    low, high = wilson(outcomes[Outcome.RESOLVED], len(episodes))
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
        tokens=sum(len(turn.completion.ids) for turn in turns),
        tool_calls=sum(turn.call is not None for turn in turns),
        seconds=seconds,
        outcomes={outcome.value: number for outcome, number in outcomes.items()},
        official=sum(bool(episode.verdict and episode.verdict.official) for episode in episodes),
        audited=sum(bool(episode.verdict and episode.verdict.audited) for episode in episodes),
        log_only=sum(bool(episode.verdict and episode.verdict.evidence is Evidence.LOG_ONLY) for episode in episodes),
    )


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927): where the true rate lies; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


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
        return Results(**{field.name: found[field.name] for field in fields(Results) if field.name in found})
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path}: not a summary of this version: {error}") from None

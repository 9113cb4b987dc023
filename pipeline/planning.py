"""Planning tokens: which they are, their emphasis (HICRA, arXiv:2509.03646), and the two phases of what a policy learns.

    A'_t = A_t + alpha |A_t|   on tokens inside a strategic gram, A_t elsewhere

For mathematics it gains where the base model is sound in procedure; for software engineering it is an extrapolation: off by default, to be
compared with `random`, the same mass on tokens drawn at random. Drift [ours]: a group's sum of A is 0, that of A' is alpha sum |A| > 0,
a push up on every planning token whatever the outcome. Applied last, after every filter; nothing is normalised after it.

A gram is found in the text of a turn's reasoning, never in its action, and taken back to the sampled ids by decoding their beginnings, so
that nothing is tokenised again. A token that is partly inside counts. Knows samples and texts, no optimiser.

Shapes: T tokens of a sample.
"""

import logging
import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import numpy as np

from .action import prose_spans
from .config_planning import PlanningConfig
from .grams import Match, find_grams, load_grams, phrases
from .prompt import Chat, Template
from .types import Batch, Episode, Group, Learner, Sample, Turn

log = logging.getLogger(__name__)
Spell = Callable[[int], str]
NEXT = 3
"""Words after a gram whose entropy, given the gram, is told."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a turn plans: its grams, and the range of sampled ids that each stands in."""

    matches: tuple[Match, ...]
    ranges: tuple[tuple[int, int], ...]


def read_plan(turn: Turn, chat: Chat, grams: Sequence[str], spell: Spell | None = None) -> Plan:
    """The grams of a turn's reasoning; `spell`: the text of one id, where it is remembered from turn to turn."""
    text = turn.completion.text
    matches = [
        replace(found, start=found.start + start, end=found.end + start)
        for start, end in prose_spans(text, chat.action_format)
        for found in find_grams(text[start:end], grams)
    ]
    return Plan(tuple(matches), tuple(token_ranges(chat.template, turn.completion.ids, matches, spell)))


def token_ranges(template: Template, ids: Sequence[int], matches: Sequence[Match], spell: Spell | None = None) -> list[tuple[int, int]]:
    """Of each match the ids whose text lies at least partly in it: [first, end). The text is that of the ids decoded."""
    if not matches:
        return []
    pieces = [spell(one) if spell else template.decode([one]) for one in ids]
    lengths = [0, *accumulate(map(len, pieces))]
    if "".join(pieces) == template.decode(ids):
        return [_range(len(ids), one, lengths.__getitem__) for one in matches]

    @cache
    def length(count: int) -> int:
        return len(template.decode(ids[:count]).rstrip("�"))  # a character of which bytes are missing is not there yet

    return [_range(len(ids), one, length) for one in matches]


def _range(count: int, match: Match, length: Callable[[int], int]) -> tuple[int, int]:
    """`length` says how many characters the first so many of `count` ids are."""
    first = bisect_right(range(count + 1), match.start, key=length) - 1
    return first, max(bisect_left(range(count + 1), match.end, key=length), first + 1)


def plan_batch(batch: Batch, groups: Sequence[Group], chat: Chat, planning: PlanningConfig) -> tuple[Batch, dict[str, float]]:
    """The batch with its planning tokens marked, and what is told of the step's plans; ids, masks and advantages stay as they are."""
    grams, spell = load_grams(planning.grams), cache(lambda one: chat.template.decode([one]))
    plans = {episode.episode_id: [read_plan(turn, chat, grams, spell) for turn in episode.turns] for episode in _episodes(groups)}
    told = measure_plans([plan for found in plans.values() for plan in found], _texts(groups))
    turns = {episode.episode_id: episode.turns for episode in _episodes(groups)}
    left_out = choose_left_out(batch.samples, turns, plans, planning.cap)
    samples = tuple(mark(sample, turns[sample.episode_id], plans[sample.episode_id], left_out) for sample in batch.samples)
    told["planning/left_out_grams"] = float(len(left_out))
    if samples:
        told["planning/fraction"] = _count(samples) / batch.tokens
    if left_out:
        log.warning("more than planning.cap = %.0f%% of all tokens plan: %s are left out", planning.cap * 100, ", ".join(sorted(left_out)))
    if samples and planning.emphasis in ("hicra", "random") and not _count(samples):
        log.warning("planning.emphasis %s: no gram of %s is in this step's reasoning", planning.emphasis, planning.grams or "grams.txt")
    return replace(batch, samples=samples), told


def mark(sample: Sample, turns: Sequence[Turn], plans: Sequence[Plan], left_out: Iterable[str] = ()) -> Sample:
    """The sample with planning_T: the tokens of its turns' grams, where they carry loss."""
    planning_T = np.zeros(len(sample.ids_T), dtype=bool)
    for turn, plan in zip(turns, plans, strict=True):
        if plan.matches and _holds(sample, turn):
            for match, (first, end) in zip(plan.matches, plan.ranges, strict=True):
                if match.gram not in left_out:
                    planning_T[len(turn.prompt) + first : len(turn.prompt) + end] = True
    return replace(sample, planning_T=planning_T & sample.mask_T)


def _holds(sample: Sample, turn: Turn) -> bool:
    """Whether the turn's sampled ids stand in the sample where they stood in the episode."""
    ids_T = sample.ids_T[len(turn.prompt) : len(turn.prompt) + len(turn.completion.ids)]
    return np.array_equal(ids_T, np.array(turn.completion.ids, dtype=np.int64))


def choose_left_out(
    samples: Sequence[Sample], turns: Mapping[str, Sequence[Turn]], plans: Mapping[str, Sequence[Plan]], cap: float
) -> frozenset[str]:
    """Grams to leave out, those that cover most first, until planning tokens are no more than the cap's share of all with loss."""
    covered = Counter[str]()
    for found in plans.values():
        for plan in found:
            for match, (first, end) in zip(plan.matches, plan.ranges, strict=True):
                covered[match.gram] += end - first
    total, left = sum(int(sample.mask_T.sum()) for sample in samples), list[str]()
    for gram, _ in sorted(covered.items(), key=lambda one: (-one[1], one[0])):
        marked = [mark(sample, turns[sample.episode_id], plans[sample.episode_id], left) for sample in samples]
        if _count(marked) <= cap * total:
            break
        left.append(gram)
    return frozenset(left)


# --- emphasis ------------------------------------------------------------------------------------------------


def emphasise(batch: Batch, planning: PlanningConfig, learner: Learner, seed: Sequence[int]) -> Batch:
    """The batch with A + alpha |A| on the tokens that planning.emphasis takes; with "off" or alpha 0 the batch itself."""
    match planning.emphasis:
        case "off":
            return batch
        case "hicra":
            chosen = [_marked(sample) for sample in batch.samples]
        case "random":
            rng = np.random.default_rng(list(seed))
            chosen = [draw_placebo(sample, rng) for sample in batch.samples]
        case "entropy_topk":
            chosen = top_entropy(batch.samples, learner.entropies(batch.samples), planning.top)
    if not planning.alpha:
        return batch
    samples = tuple(stress(sample, chosen_T, planning.alpha) for sample, chosen_T in zip(batch.samples, chosen, strict=True))
    return replace(batch, samples=samples)


def stress(sample: Sample, chosen_T: np.ndarray, alpha: float) -> Sample:
    """A + alpha |A| on the chosen tokens that carry loss."""
    advantages_T = sample.advantages_T
    raised_T = np.where(chosen_T & sample.mask_T, advantages_T + np.float32(alpha) * np.abs(advantages_T), advantages_T)
    return replace(sample, advantages_T=raised_T.astype(np.float32))


def draw_placebo(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """As many tokens with loss of each |A| as plan, drawn at random: the same mass, bool (T,)."""
    chosen_T = np.zeros(len(sample.ids_T), dtype=bool)
    planning_T, size_T = _marked(sample), np.abs(sample.advantages_T)
    for size in np.unique(size_T[planning_T]):
        alike = np.flatnonzero(sample.mask_T & (size_T == size))
        chosen_T[rng.choice(alike, size=int((planning_T & (size_T == size)).sum()), replace=False)] = True
    return chosen_T


def top_entropy(samples: Sequence[Sample], entropies: Sequence[np.ndarray], top: float) -> list[np.ndarray]:
    """The tokens with loss whose entropy is among the highest `top` of the batch, bool (T,) each."""
    all_M = np.concatenate([entropy_T[sample.mask_T] for sample, entropy_T in zip(samples, entropies, strict=True)])
    bound = np.quantile(all_M, 1.0 - top)
    return [sample.mask_T & (entropy_T >= bound) for sample, entropy_T in zip(samples, entropies, strict=True)]


def _marked(sample: Sample) -> np.ndarray:
    return np.zeros(len(sample.ids_T), dtype=bool) if sample.planning_T is None else sample.planning_T


def _count(samples: Iterable[Sample]) -> int:
    return int(sum(_marked(sample).sum() for sample in samples))


# --- what is told --------------------------------------------------------------------------------------------


def measure_plans(plans: Sequence[Plan], texts: Sequence[str]) -> dict[str, float]:
    """How the grams of a step are spread: the Shannon entropy of their frequencies ("semantic entropy", nats), and that of the next three
    words given the gram. `texts`: of the turns, in the order of the plans."""
    counts, after = Counter[str](), defaultdict[str, Counter[str]](Counter)
    for plan, text in zip(plans, texts, strict=True):
        for match in plan.matches:
            counts[match.gram] += 1
            following = next(phrases(text[match.end :].split("\n", 1)[0]), [])
            after[match.gram][" ".join(following[:NEXT])] += 1
    told = {"planning/matches": float(counts.total())}
    if counts:
        told["planning/semantic_entropy"] = shannon(counts)
        told["planning/conditional_entropy"] = sum(counts[gram] * shannon(after[gram]) for gram in counts) / counts.total()
    return told


def shannon(counts: Mapping[str, int]) -> float:
    """- sum p log p, in nats.

    >>> round(shannon({"a": 2, "b": 2}), 4)
    0.6931
    """
    total = sum(counts.values())
    return sum(count / total * math.log(total / count) for count in counts.values())


def _episodes(groups: Sequence[Group]) -> list[Episode]:
    return [episode for group in groups for episode in group.episodes]


def _texts(groups: Sequence[Group]) -> list[str]:
    return [turn.completion.text for episode in _episodes(groups) for turn in episode.turns]

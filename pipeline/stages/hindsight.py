"""Evaluative and directive feedback (OpenClaw-RL, arXiv:2603.10165): advantages from what came of each turn, not from the outcome.

    A_k = w_b r + w_o (log pi(a_k | s, h) - log pi(a_k | s))

r, +1, 0 or -1, says how good the turn was, the hint h how it should have been: both by rules over the turn's observation (hints.py), r by
a judge's votes where there is one (jury.py). The teacher is the policy itself with the hint at the end of the turn's last message; both
log-probs are the learner's, in one call, on the ids that were sampled. Nothing is normalised: the turns of a group are unrelated states.
With `hindsight.top_k` the directive part is no advantage but a part of the loss, w_o KL(pi || teacher) over the teacher's K likeliest
tokens and one bin for the rest (loss.teacher_loss): what the sampled form is an estimate of.

Knows episodes and a learner, nothing of engines or optimisers. A batch is made in two parts: what it consists of, hints included,
follows from the recorded episodes alone (`plan_lesson`, whose digest is recorded), the directive part from the weights (`learn`), so that
a step repeated after a kill is the same step. Left out: the outcome (see docs/methods/hindsight.md for what that means), hints that a
model writes.

Shapes: T tokens of a sample, N turns, H tokens with a teacher, K bins.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tasks import Task

from ..batch import CreditedGroup, find_fates, measure_groups, measure_samples, merge_turns, split_history
from ..config import Config, HindsightConfig
from ..hints import Secrets, find_secrets, leaks, rate_turn, read_hint
from ..jury import count_majority
from ..prompt import Chat
from ..staleness import enter, make_batch
from ..tools import clip
from ..types import Batch, Episode, Group, Learner, Likeliest, Sample, Stop, Teacher, Turn

HINT = "\n\n[A hint for the next turn, from what came of it: {hint}]"


@dataclass(frozen=True, slots=True)
class Twin:
    """A turn as the teacher sees it: the same sampled ids after a prompt with a hint."""

    row: int
    """Of the sample that holds the turn ..."""
    start: int
    """... and where in it the turn's sampled ids begin."""
    sample: Sample
    """Its mask is that of the sampled ids."""

    @property
    def span(self) -> slice:
        """Where the turn's sampled ids stand in the row."""
        return slice(self.start, self.start + int(self.sample.mask_T.sum()))


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch, and what the learner's weights have still to say of it before the step."""

    batch: Batch
    twins: tuple[Twin, ...] = ()
    weight: float = 0.0
    """w_o"""
    bound: float = np.inf
    """The largest size of the directive part."""
    top_k: int | None = None
    """K; None: the sampled form."""

    @property
    def digest(self) -> str:
        """The batch's own where there are no hints."""
        if not self.twins:
            return self.batch.digest
        places = [(twin.row, twin.start) for twin in self.twins]
        hinted = Batch(tuple(twin.sample for twin in self.twins)).digest
        return hashlib.sha256(f"{self.batch.digest} {hinted} {places} {self.weight} {self.bound} {self.top_k}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Source:
    """What a lesson is made with beside the episodes."""

    chat: Chat
    context: int
    """Tokens of one episode: a turn that is longer with its hint has none."""
    tasks: Sequence[Task]
    """Whose answers no hint may tell."""


@dataclass(slots=True)
class Counts:
    """Of a step's turns."""

    rated: list[int | None] = field(default_factory=list)
    """r of each turn that has a state after it; None where the judge came to no majority."""
    votes: int = 0
    hinted: int = 0
    leaked: int = 0
    overlong: int = 0


@dataclass(frozen=True, slots=True)
class Reader:
    """What episodes are read with."""

    config: HindsightConfig
    source: Source
    oldest: int
    """Tokens that an earlier version sampled carry no loss."""
    counts: Counts = field(default_factory=Counts)


def plan_lesson(config: Config, source: Source, groups: Sequence[Group], version: int) -> Lesson:
    """What a step trains on: with `hindsight` all graded episodes, else the batch that credit makes. The same whenever it is made again."""
    if config.hindsight is None:
        return Lesson(make_batch(config, groups, version))
    reader = Reader(config.hindsight, source, version - config.train.max_lag)
    known = {task.instance_id: task for task in source.tasks}
    fresh, read, twins = enter(groups, version, config.train), list[CreditedGroup](), list[Twin]()
    for group in fresh:
        before = sum(len(one.samples) for one in read)
        if group.instance_id not in known:
            raise ValueError(f"{group.instance_id} is not among this run's tasks any more: what its hints must not say is unknown")
        one, own = read_group(reader, find_secrets(known[group.instance_id]), group)
        read.append(one)
        twins += [replace(twin, row=twin.row + before) for twin in own]
    samples = tuple(sample for one in read for sample in one.samples)
    if not twins and not any(sample.advantages_T.any() for sample in samples):
        samples = ()
    metrics = measure_groups(read) | measure_samples(samples) | measure_counts(reader.counts, config.hindsight)
    fates = find_fates(read, config.credit, {sample.episode_id for sample in samples})
    stale = {episode.episode_id: "stale" for group in groups for episode in group.episodes if episode.episode_id not in fates}
    told = config.hindsight
    bound = np.inf if told.bound is None else told.bound
    return Lesson(Batch(samples, metrics, fates | stale), tuple(twins), told.directive_weight, bound, told.top_k)


def read_group(reader: Reader, secrets: Secrets, group: Group) -> tuple[CreditedGroup, list[Twin]]:
    """The samples of a group's graded episodes and their twins, whose rows count from the group's first sample."""
    graded = tuple(episode for episode in group.episodes if episode.stop is not Stop.INFRA and episode.signal is not None)
    samples, twins = list[Sample](), list[Twin]()
    for episode in graded:
        own, hinted = read_episode(reader, secrets, episode)
        twins += [replace(twin, row=twin.row + len(samples)) for twin in hinted]
        samples += own
    ungraded = tuple(episode for episode in group.episodes if episode not in graded)
    rewards_G = np.array([episode.reward for episode in graded], dtype=np.float64)
    mixed = len(set(rewards_G.tolist())) > 1
    return CreditedGroup(graded, ungraded, "kept" if samples else "constant", mixed, rewards_G, tuple(samples)), twins


def read_episode(reader: Reader, secrets: Secrets, episode: Episode) -> tuple[list[Sample], list[Twin]]:
    """Samples whose advantages are w_b r, and a twin for each turn with a hint. The last turn carries no loss: no state came after it.

    A turn without a majority of votes carries loss only where it has a hint.
    """
    turns = episode.turns
    rated = [rate(reader, turns, index) for index in range(len(turns) - 1)]
    prompts = [make_hinted(reader, secrets, turns, index) for index in range(len(rated))]
    loss_N = np.array([r is not None or prompt is not None for r, prompt in zip(rated, prompts, strict=True)] + [False], dtype=bool)
    advantages_N = reader.config.evaluative_weight * np.array([*(r or 0 for r in rated), 0], dtype=np.float64)
    samples, twins = list[Sample](), list[Twin]()
    for run in split_history(turns):
        made = merge_turns(episode, advantages_N, loss_N, [run], reader.oldest)
        hinted = [index for index in run if made and index < len(prompts) and prompts[index] is not None]
        twins += [make_twin(episode, index, prompts[index] or [], len(samples)) for index in hinted]
        samples += made
    return samples, twins


def rate(reader: Reader, turns: Sequence[Turn], index: int) -> int | None:
    """r of a turn, by the judge where there is one, else by rules."""
    votes = turns[index].votes
    r = count_majority(votes) if reader.config.judge else rate_turn(turns, index)
    reader.counts.votes += len(votes)
    reader.counts.rated.append(r)
    return r


def make_hinted(reader: Reader, secrets: Secrets, turns: Sequence[Turn], index: int) -> list[int] | None:
    """The prompt of a turn with its hint; None where there is none, where it says what must stay hidden, or where it does not fit."""
    turn, counts, chat = turns[index], reader.counts, reader.source.chat
    hint = read_hint(turns, index) if reader.config.directive_weight else ""
    if not hint:
        return None
    if leaks(hint, secrets, chat.template.decode(turn.prompt)):
        counts.leaked += 1
        return None
    prompt = chat.append(turn.prompt, HINT.format(hint=clip(hint, reader.config.hint_chars)))
    if len(prompt) + len(turn.completion.ids) > reader.source.context:
        counts.overlong += 1
        return None
    counts.hinted += 1
    return prompt


def make_twin(episode: Episode, index: int, prompt: list[int], row: int) -> Twin:
    """The sampled ids as they are, after the other prompt."""
    turn = episode.turns[index]
    ids_T = np.array([*prompt, *turn.completion.ids], dtype=np.int64)
    zeros_T = np.zeros(len(ids_T), dtype=np.float32)
    sample = Sample(episode.episode_id, episode.group_id, ids_T, np.arange(len(ids_T)) >= len(prompt), zeros_T, zeros_T)
    return Twin(row, len(turn.prompt), sample)


def measure_counts(counts: Counts, config: HindsightConfig) -> dict[str, float]:
    """Shares of turns that a state came after; votes only with a judge."""
    turns = len(counts.rated)
    metrics = {
        "hindsight/turns": float(turns),
        "hindsight/hinted_turns": float(counts.hinted),
        "hindsight/leaking_hints": float(counts.leaked),
        "hindsight/overlong_hints": float(counts.overlong),
    }
    if turns:
        metrics["hindsight/good_rate"] = counts.rated.count(1) / turns
        metrics["hindsight/bad_rate"] = counts.rated.count(-1) / turns
    if config.judge is not None:
        metrics["hindsight/votes"] = float(counts.votes)
        metrics["hindsight/missing_votes"] = float(config.votes * turns - counts.votes)
        metrics["hindsight/undecided_turns"] = float(counts.rated.count(None))
    return metrics


# --- with the learner's weights ------------------------------------------------------------------------------


def learn(learner: Learner, lesson: Lesson) -> dict[str, float]:
    """The directive part under the weights as they are now, then the step."""
    if not lesson.twins:
        return learner.step(lesson.batch)
    if lesson.top_k is not None:
        return learn_from_teacher(learner, lesson, lesson.top_k)
    directives = [np.clip(part_T, -lesson.bound, lesson.bound) for part_T in score_twins(learner, lesson)]
    samples = tuple(add(sample, lesson.weight * part_T) for sample, part_T in zip(lesson.batch.samples, directives, strict=True))
    told_T = np.concatenate([directives[twin.row][twin.span][samples[twin.row].mask_T[twin.span]] for twin in lesson.twins])
    metrics = measure_samples(samples)
    if told_T.size:
        metrics |= {"hindsight/directive_mean": float(told_T.mean()), "hindsight/directive_abs_mean": float(np.abs(told_T).mean())}
    return metrics | learner.step(replace(lesson.batch, samples=samples))


def score_twins(learner: Learner, lesson: Lesson) -> list[np.ndarray]:
    """log pi(a | s, h) - log pi(a | s) of each token of each sample, shape (T,), float32; exactly 0 where there is no hint, or no loss.

    One call of the learner scores both: another backend's log-probs would add their difference to every token. A score that is not
    finite is an error, never a 0, which would mean probability 1.
    """
    rows = sorted({twin.row for twin in lesson.twins})
    scores = learner.logprobs([*(lesson.batch.samples[row] for row in rows), *(twin.sample for twin in lesson.twins)])
    plain = dict(zip(rows, scores, strict=False))
    parts = [np.zeros(len(sample.ids_T), dtype=np.float32) for sample in lesson.batch.samples]
    for twin, hinted_T in zip(lesson.twins, scores[len(rows) :], strict=True):
        told = hinted_T[twin.sample.mask_T]
        fresh = lesson.batch.samples[twin.row].mask_T[twin.span]
        parts[twin.row][twin.span] = np.where(fresh, told - plain[twin.row][twin.span], 0.0)
    if not all(np.isfinite(part_T).all() for part_T in parts):
        raise FloatingPointError("the learner's log-probs of a hinted turn are not finite")
    return parts


def add(sample: Sample, directive_T: np.ndarray) -> Sample:
    """The sample with the directive part in its advantages."""
    return replace(sample, advantages_T=(sample.advantages_T + directive_T).astype(np.float32))


def learn_from_teacher(learner: Learner, lesson: Lesson, count: int) -> dict[str, float]:
    """The top-K form: what the teacher holds likeliest under the weights as they are now, then the step."""
    found = learner.likeliest([twin.sample for twin in lesson.twins], count)
    if not all(np.isfinite(likeliest.logprobs_HK).all() for likeliest in found):
        raise FloatingPointError("the learner's log-probs of a hinted turn are not finite")
    samples = list(lesson.batch.samples)
    for twin, likeliest in zip(lesson.twins, found, strict=True):
        samples[twin.row] = put_teacher(samples[twin.row], twin, likeliest, lesson.weight)
    told = sum(len(sample.teacher.places_H) for sample in samples if sample.teacher is not None)
    return {"hindsight/told_tokens": float(told)} | learner.step(replace(lesson.batch, samples=tuple(samples)))


def put_teacher(sample: Sample, twin: Twin, likeliest: Likeliest, weight: float) -> Sample:
    """The sample with what the teacher says of one more turn, at those of its tokens that carry loss."""
    fresh_H = sample.mask_T[twin.span]
    places_H = twin.start + np.flatnonzero(fresh_H)
    weights_H = np.full(len(places_H), weight, dtype=np.float32)
    added = (places_H, likeliest.ids_HK[fresh_H], likeliest.logprobs_HK[fresh_H], weights_H)
    if (known := sample.teacher) is None:
        return replace(sample, teacher=Teacher(*added))
    before = (known.places_H, known.ids_HK, known.logprobs_HK, known.weights_H)
    return replace(sample, teacher=Teacher(*(np.concatenate(pair) for pair in zip(before, added, strict=True))))

#!/usr/bin/env python3
"""What a hint is worth beside a scalar, on a bandit that is computed exactly: updates until the right answer has p >= 0.9.

    python scripts/bench/hindsight_bandit.py [--hint 3.0] [--lr 0.5] [--most 2000] [--answers 4] [--seeds 20] [--json FILE]

Two tasks, each with one right answer of P digits out of D. After a wrong one the observation names the right one (`right`), or the other
task's (`shuffled`, the control). The policy is a table of log-weights for each task and digit; a hint makes the digits that it names
likelier by e^hint. Lesson and advantages are those of a run (pipeline/stages/hindsight.py); the gradient is the expected one, over all
answers. r is -1 for a wrong answer and 0 for the right one, as the rules of pipeline/hints.py have it. `always` tells after the right
answer too: only there is the top-K form the sampled form's expectation. The second table draws --answers answers a task and update instead.
"""

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.config import Config, HindsightConfig, TasksConfig
from pipeline.prompt import ByteTemplate, Chat
from pipeline.stages.hindsight import Lesson, Source, learn, plan_lesson
from pipeline.types import Batch, Completion, Episode, Group, Likeliest, Sample, Stop, ToolCall, Turn
from sandbox import Image
from tasks import Outcome, Task, Verdict

CHAT = Chat(ByteTemplate())
NAMED = re.compile(r"the right one is (\d+)")
FORMS: dict[str, dict[str, float]] = {
    "scalar": {"directive_weight": 0.0},
    "directive": {"evaluative_weight": 0.0},
    "both": {},
    "top-2": {"evaluative_weight": 0.0, "top_k": 2},
    "top-all": {"evaluative_weight": 0.0, "top_k": 100},
}
"""What is set of the section `hindsight`: w_b = w_o = 1 and the sampled form are its defaults."""


@dataclass(frozen=True)
class Bandit:
    """Answers of `places` digits below `digits`; those of the right answers differ in every place."""

    places: int
    digits: int
    hint: float = 3.0
    lr: float = 0.5

    @property
    def rights(self) -> tuple[str, str]:
        """The right answer of each task."""
        low = [(place + 1) % self.digits for place in range(self.places)]
        return "".join(map(str, low)), "".join(str((digit + 1) % self.digits) for digit in low)

    @property
    def answers(self) -> list[str]:
        """All of them."""
        return ["".join(one) for one in itertools.product(map(str, range(self.digits)), repeat=self.places)]


class Table:
    """The exact learner (types.Learner, as far as a lesson needs one)."""

    def __init__(self, bandit: Bandit) -> None:
        self.bandit = bandit
        self.weights = np.zeros((2, bandit.places, bandit.digits))
        """Task, place, digit."""
        self.drawn: list[Counter[str]] | None = None
        """How often each task drew which answer for the next update; None: the expectation over all."""

    def draw(self, count: int, generator: np.random.Generator) -> None:
        """So many answers of each task for the next update."""
        shares = [[self.p(task, answer) for answer in self.bandit.answers] for task in range(2)]
        self.drawn = [Counter(generator.choice(self.bandit.answers, count, p=np.array(p) / sum(p)).tolist()) for p in shares]

    def share(self, task: int, answer: str) -> float:
        """Of an answer in an update."""
        return self.p(task, answer) if self.drawn is None else self.drawn[task][answer] / self.drawn[task].total()

    def log_p(self, task: int, hint: str = "") -> np.ndarray:
        """Shape (places, digits)."""
        logits = self.weights[task].copy()
        for place, digit in enumerate(hint):
            logits[place, int(digit)] += self.bandit.hint
        return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))

    def p(self, task: int, answer: str) -> float:
        """Of a whole answer."""
        log_p = self.log_p(task)
        return float(np.exp(sum(log_p[place, int(digit)] for place, digit in enumerate(answer))))

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The digits', with the hint that stands before them."""
        return [self._score(sample) for sample in samples]

    def likeliest(self, samples: Sequence[Sample], count: int) -> list[Likeliest]:
        """Digits, with the hint that stands before them; what follows the digits is certain, and `step` does not look there."""
        return [self._rank(sample, min(count, self.bandit.digits)) for sample in samples]

    def step(self, batch: Batch) -> dict[str, float]:
        """One step along the expected gradient: every answer there is, weighted by its probability."""
        gradient = np.zeros_like(self.weights)
        for sample in batch.samples:
            task, (places, answer) = int(sample.group_id), self._read(sample)
            p = np.exp(self.log_p(task))
            for place, (at, digit) in enumerate(zip(places, answer, strict=True)):
                toward = sample.advantages_T[at] * (np.eye(self.bandit.digits)[int(digit)] - p[place])
                gradient[task, place] += self.share(task, answer) * (toward + self._lean(sample, at, p[place]))
        self.weights = self.weights + self.bandit.lr * gradient
        return {}

    def _lean(self, sample: Sample, at: int, p: np.ndarray) -> np.ndarray | float:
        """The gradient of - weight x KL(policy || teacher) over the teacher's bins and one for the rest; 0 without a teacher there."""
        found = [] if sample.teacher is None else np.flatnonzero(sample.teacher.places_H == at).tolist()
        if sample.teacher is None or not found:
            return 0.0
        named = [int(CHAT.template.decode([token])) for token in sample.teacher.ids_HK[found[0]].tolist()]
        q, rest = np.exp(sample.teacher.logprobs_HK[found[0]].astype(float)), np.delete(np.arange(len(p)), named)
        ratios = np.empty(len(p))
        ratios[named] = np.log(p[named] / q)
        ratios[rest] = np.log(p[rest].sum() / max(1 - q.sum(), 1e-12)) if len(rest) else 0.0
        return np.asarray(-sample.teacher.weights_H[found[0]] * p * (ratios - p @ ratios))

    def _score(self, sample: Sample) -> np.ndarray:
        scores_T = np.zeros(len(sample.ids_T), np.float32)
        places, answer = self._read(sample)
        log_p = self._hinted(sample, places)
        for place, at in enumerate(places):
            scores_T[at] = log_p[place, int(answer[place])]
        return scores_T

    def _rank(self, sample: Sample, count: int) -> Likeliest:
        places, _ = self._read(sample)
        order = np.argsort(-self._hinted(sample, places), axis=1)[:, :count]
        shape = (int(sample.mask_T.sum()), count)
        found = Likeliest(np.zeros(shape, np.int64), np.zeros(shape, np.float32))
        found.ids_HK[: len(places)] = [[CHAT.write(str(digit))[0] for digit in row] for row in order]
        found.logprobs_HK[: len(places)] = np.take_along_axis(self._hinted(sample, places), order, axis=1)
        return found

    def _hinted(self, sample: Sample, places: list[int]) -> np.ndarray:
        named = NAMED.search(CHAT.template.decode(sample.ids_T[: places[0]].tolist()))
        return self.log_p(int(sample.group_id), named[1] if named else "")

    def _read(self, sample: Sample) -> tuple[list[int], str]:
        """Where the digits stand, and which they are."""
        places = np.flatnonzero(sample.mask_T)[: self.bandit.places].tolist()
        return places, CHAT.template.decode(sample.ids_T[places].tolist())


def make_lesson(bandit: Bandit, hints: Sequence[str], form: dict[str, float], always: bool = False) -> Lesson:
    """Every answer of both tasks once, a wrong one answered with the task's hint; the right one as well where it is told `always`."""
    task = Task("bandit", "b/b", "1", "0" * 40, "Guess.", Image("none"), "", "", "", "parse_log_pytest", ("t",), ())
    groups = []
    for number, (right, hint) in enumerate(zip(bandit.rights, hints, strict=True)):
        told = [(text, "edited" if text == right and not always else f"error: the right one is {hint}") for text in bandit.answers]
        groups.append(Group(str(number), "bandit", 0, tuple(make_episode(f"{number}.{text}", text, seen) for text, seen in told)))
    config = Config(tasks=TasksConfig(suite=Path("none")), hindsight=HindsightConfig.model_validate(form))
    return plan_lesson(config, Source(CHAT, 10_000, [task]), groups, 0)


def make_episode(name: str, text: str, observation: str) -> Episode:
    """An answer, what it was told, and a turn that ends it."""
    prompt = CHAT.template.start("Guess.", "A number?")
    first = Turn(tuple(prompt), _complete(text), ToolCall("edit", {}), observation)
    last = Turn(tuple(CHAT.extend(prompt, first.completion, observation)), _complete("end"), ToolCall("submit", {}), "submitted")
    verdict = Verdict("bandit", Outcome.UNRESOLVED)
    return Episode(name, name.partition(".")[0], "bandit", (first, last), Stop.SUBMITTED, "", verdict)


def _complete(text: str) -> Completion:
    ids = tuple(CHAT.write(text))
    return Completion(ids, (0.0,) * len(ids), text, 0, stopped=True)


def play(bandit: Bandit, hints: Sequence[str], form: dict[str, float], most: int, always: bool = False) -> list[float]:
    """The mean probability of the right answers before the first update and after each; ends where it is 0.9."""
    table, lesson = Table(bandit), make_lesson(bandit, hints, form, always)
    found = [float(np.mean([table.p(task, right) for task, right in enumerate(bandit.rights)]))]
    while len(found) <= most and found[-1] < 0.9:
        learn(table, lesson)  # type: ignore[arg-type]
        found.append(float(np.mean([table.p(task, right) for task, right in enumerate(bandit.rights)])))
    return found


def play_drawn(bandit: Bandit, form: dict[str, float], always: bool, chosen: argparse.Namespace) -> list[int]:
    """Updates until the mean probability of the right answers is 0.9, at most chosen.most, for each seed."""
    found, lesson = [], make_lesson(bandit, bandit.rights, form, always)
    for seed in range(chosen.seeds):
        table, generator, updates = Table(bandit), np.random.default_rng(seed), 0
        while updates < chosen.most and np.mean([table.p(task, right) for task, right in enumerate(bandit.rights)]) < 0.9:
            table.draw(chosen.answers, generator)
            learn(table, lesson)  # type: ignore[arg-type]
            updates += 1
        found.append(updates)
    return found


def main() -> None:
    """Play, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hint", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=0.5)
    parser.add_argument("--most", type=int, default=2000)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    rows = []
    for places, digits in ((1, 9), (2, 3), (2, 5), (3, 3)):
        bandit = replace(Bandit(places, digits), hint=chosen.hint, lr=chosen.lr)
        for name, form in FORMS.items():
            for order, hints in (("right", bandit.rights), ("shuffled", bandit.rights[::-1])):
                if name == "scalar" and order == "shuffled":
                    continue  # it reads no hint
                curve = play(bandit, hints, form, chosen.most if order == "right" else 200)
                rows.append({"places": places, "digits": digits, "form": name, "hints": order, "updates": len(curve) - 1, "p": curve[-1]})
                reached = f"{len(curve) - 1:5} updates" if curve[-1] >= 0.9 else f"not in {len(curve) - 1}"
                print(f"{places} x {digits}  {name:9}  {order:8}  {reached:14}  p {curve[0]:.3f} -> {curve[-1]:.3f}")
    for name, always in itertools.product(("directive", "top-2", "top-all"), (False, True)):
        bandit = replace(Bandit(2, 5), hint=chosen.hint, lr=chosen.lr)
        updates = play_drawn(bandit, FORMS[name], always, chosen)
        rows.append({"places": 2, "digits": 5, "form": name, "always": always, "answers": chosen.answers, "drawn": updates})
        spread = f"{np.mean(updates):5.1f} +- {np.std(updates) / np.sqrt(len(updates)):4.1f} updates, worst {max(updates)}"
        print(f"2 x 5  {name:9}  {chosen.answers} answers, told {'always' if always else 'after wrong ones':16}  {spread}")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

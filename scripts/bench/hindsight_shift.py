#!/usr/bin/env python3
"""How much of the directive part is the hint's content: a run's recorded turns scored with their own hints, others' and an empty one.

    python scripts/bench/hindsight_shift.py RUN [--turns 32] [--seed 0]

RUN: a folder of `greengrad train`; its first step's turns with hints are scored by its model as it was at the start, on this machine's
learner. own: the turn's hint. other: that of another turn, another text where there is one. empty: the frame around a hint, without one.
What own has in common with the other two is what any text in that place does to the likelihood of what follows, and no feedback.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.actor import open_chat
from pipeline.config import Config
from pipeline.config_io import load_config
from pipeline.hints import read_hint
from pipeline.journal import Journal
from pipeline.learner import DeepSpeedLearner
from pipeline.stages.hindsight import HINT, make_twin
from pipeline.types import Episode, Sample
from pipeline.world import setup_learner

Told = tuple[Episode, int, str]
"""A turn of an episode, and its hint."""


def read_turns(run: Path, most: int) -> list[Told]:
    """The turns with hints of a run's first step, in the order of their episodes' ids."""
    with Journal(run, readonly=True) as journal:
        episodes = sorted(journal.episodes(0), key=lambda one: one.episode_id)
    found = [(one, index, read_hint(one.turns, index)) for one in episodes for index in range(len(one.turns))]
    return [told for told in found if told[2]][:most]


def shuffle(hints: list[str], seed: int) -> list[str]:
    """For each the hint of another turn, of another text where there is one."""
    generator = np.random.default_rng(seed)
    return [str(generator.choice([other for other in hints if other != hint] or [hint])) for hint in hints]


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--turns", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    config = load_config(chosen.run / "config.yaml", [], Config)
    chat, told = open_chat(config), read_turns(chosen.run, chosen.turns)
    hints = [hint for _, _, hint in told]
    plain = [make_twin(episode, index, list(episode.turns[index].prompt), 0).sample for episode, index, _ in told]
    kinds = {"own": hints, "other": shuffle(hints, chosen.seed), "empty": [""] * len(hints)}

    def hinted(texts: list[str]) -> list[Sample]:
        prompts = [chat.append(one.turns[index].prompt, HINT.format(hint=text)) for (one, index, _), text in zip(told, texts, strict=True)]
        return [make_twin(one, index, prompt, 0).sample for (one, index, _), prompt in zip(told, prompts, strict=True)]

    rows = [*plain, *(sample for texts in kinds.values() for sample in hinted(texts))]
    with tempfile.TemporaryDirectory() as folder:
        learner = DeepSpeedLearner(replace(setup_learner(config, Path(folder)), logs=Path(folder)))
        try:
            scores = [logp_T[row.mask_T] for row, logp_T in zip(rows, learner.logprobs(rows), strict=True)]
        finally:
            learner.close()
    base = np.concatenate(scores[: len(told)])
    count = len(told)
    parts = {kind: np.concatenate(scores[count * place :][:count]) - base for place, kind in enumerate(kinds, start=1)}
    print(f"{len(told)} turns, {len(base)} sampled tokens, {len(set(hints))} different hints")
    for kind, part in parts.items():
        like = np.corrcoef(part, parts["own"])[0, 1]
        sizes = np.abs(part)
        print(f"{kind:6} mean {part.mean():+.3f}  mean size {sizes.mean():.3f}  largest {sizes.max():.1f}  r with own {like:.2f}")


if __name__ == "__main__":
    main()

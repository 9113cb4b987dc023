#!/usr/bin/env python3
"""What `greengrad plan` computes beside what was measured: figures of docs/LOG.md, and steps of runs of one's own.

    python scripts/bench/plan_check.py [--run RUN ...] [--json FILE]

Without --run: each row gives the formulas of pipeline/cost.py the work that the log names (episodes, turns, tokens) and compares seconds.
The row by which the learner's rate in pipeline/hardware.py was chosen is marked, and proves nothing; the engine's rate is that of 330
tokens/s for 16 requests of an earlier measurement. With --run: each step of a run of `greengrad train`, its episodes as the journal has
them, with the placement of its configuration. Nothing is run; it takes a second.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.config import Config
from pipeline.config_io import load_config
from pipeline.cost import estimate_cost, learning_flops
from pipeline.cost_rollout import decode_step
from pipeline.hardware import PROCESSORS
from pipeline.journal import Journal
from pipeline.shape import Shape, model_shape
from pipeline.types import Episode

SMOLLM2 = Shape(134_515_008, 30, 576, 192, 49_152, 28_311_552, "SmolLM2-135M")
FOUR_LAYERS = Shape(28_311_552 + 4 * 3_540_096 + 576, 4, 576, 192, 49_152, 28_311_552, "its first 4 layers")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ENGINE = {1: 12.73, 8: 66.47, 16: 149.26, 32: 217.71}
"""Requests at once -> tokens/s: scripts/bench/engine.py at load 0.7."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    what: str
    predicted: float
    measured: float
    chosen_by: bool = False
    """Whether a rate was chosen to fit it."""

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted / self.measured - 1


def learning(shape: Shape, computed: float, scored: float, length: float) -> float:
    """Seconds of forward and backward on this machine."""
    return learning_flops(load_config(QUICKSTART, [], Config), shape, computed, scored, length) / PROCESSORS.learner_flops


def sampling(episodes: int, turns: float, sampled: float, *words: str, prompt: float = 250, observed: float = 31) -> float:
    """Seconds until episodes on 16 machines have a grade; 250 + 4 x 31 tokens besides what is sampled, as in the demonstrations."""
    work = {"turns": turns, "prompt_tokens": prompt, "sampled_tokens": sampled, "observation_tokens": observed}
    given = [word for key, value in work.items() for word in (f"--placement.episode.{key}", str(value))]
    config = load_config(QUICKSTART, [*given, "--rollout.tasks_per_step", str(episodes), "--rollout.group_size", "1", *words], Config)
    cost = estimate_cost(config, SMOLLM2)
    return cost.rollout.seconds + cost.grade


def answering(requests: int) -> float:
    """Seconds of 96 tokens for so many requests at once, of whose prompts the engine has all but one block (scripts/bench/engine.py)."""
    new = 400 if requests == 1 else 16
    prefill = requests * new * 2 * SMOLLM2.body / PROCESSORS.engine_flops
    return prefill + 96 * decode_step(SMOLLM2, PROCESSORS, requests, 450)[0]


def recorded_rows() -> list[Row]:
    """Of docs/LOG.md."""
    four, eight = FOUR_LAYERS, 8 * 4096
    return [
        Row("learn: 8 x 4,096 tokens, 4 layers, half scored", learning(four, eight, eight / 2, 4096), 40.23, chosen_by=True),
        Row("learn: the same, half shared and nothing packed", learning(four, eight, 8190, 4096), 29.25),
        Row("learn: the same, three quarters shared", learning(four, eight, 4107, 4096), 25.83),
        Row("learn: the same in one pack", learning(four, 3072 + 8 * 1024, 4102, 4096), 14.00),
        Row("learn: 8 x 1,024 tokens, 4 layers, half scored", learning(four, 8192, 4096, 1024), 13.79),
        Row("learn: the same, half shared, packed", learning(four, 4608, 2051, 1024), 7.89),
        Row("learn: one group of the quickstart, flat", learning(SMOLLM2, 4525, 1000, 566), 14.8),
        Row("learn: the same, packed", learning(SMOLLM2, 2501, 1000, 566), 8.5),
        Row("learn: two groups, flat", learning(SMOLLM2, 9042, 2000, 566), 37.1),
        Row("learn: two groups, packed", learning(SMOLLM2, 5176, 2000, 566), 20.9),
        Row("learn: fine-tuning of the quickstart, 2 x 42 demonstrations", learning(SMOLLM2, 84 * 512, 84 * 138, 512), 200.0),
        Row("rollout: the quickstart's evaluation after reinforcement", sampling(20, 3.9, 89 * 27 / 78), 27.0),
        Row("rollout: its evaluation before reinforcement", sampling(20, 3.7, 87 * 30 / 74), 30.0),
        Row("rollout: its evaluation of the base model", sampling(20, 2.1, 129 * 49 / 42), 49.0),
        *(Row(f"decode: 96 tokens for {n} at once", answering(n), 96 * n / rate) for n, rate in ENGINE.items()),
    ]


def expect(config: Config, episodes: Sequence[Episode], kept: float) -> list[str]:
    """Overrides that describe recorded episodes; kept: share of the groups that were trained on."""
    turns = [len(episode.turns) for episode in episodes]
    sampled = sum(len(turn.completion.ids) for episode in episodes for turn in episode.turns)
    prompt = np.mean([len(episode.turns[0].prompt) for episode in episodes])
    last = [episode.turns[-1] for episode in episodes]
    added = sum(len(turn.prompt) + len(turn.completion.ids) for turn in last) - prompt * len(episodes)
    found = {
        "turns": np.mean(turns),
        "prompt_tokens": prompt,
        "sampled_tokens": sampled / sum(turns),
        "observation_tokens": (added - sampled) / sum(turns),
        "tool_seconds": sum(turn.seconds_tool for episode in episodes for turn in episode.turns) / sum(turns),
        "signal": kept,
    }
    given = [word for key, value in found.items() for word in (f"--placement.episode.{key}", repr(float(value)))]
    return [*given, "--rollout.max_turns", str(max(turns))]


def run_rows(run: Path) -> list[Row]:
    """Rollout, update and publish of each step of a run."""
    rows: list[Row] = []
    config = load_config(run / "config.yaml", [], Config)
    assert config.model is not None
    with Journal(run, readonly=True) as journal:
        episodes = [episode for episode in journal.episodes() if episode.turns]
        for step, metrics in journal.steps().items():
            mine = [episode for episode in episodes if episode.group_id.startswith(f"{step:05d}.")]
            kept = metrics["batch/kept_groups"] / metrics["batch/groups"]
            words = expect(config, mine, kept or 1.0)
            cost = estimate_cost(load_config(run / "config.yaml", words, Config), model_shape(config.model, config.placement))
            found = {"rollout": cost.rollout.seconds + cost.grade, "learn": cost.learn, "publish": cost.publish}
            for name, seconds in found.items():
                if metrics.get("optim/steps") or name == "rollout":
                    rows.append(Row(f"{name}: step {step} of {run.name}", seconds, metrics[f"time/{name}_seconds"]))
    return rows


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same; it is quick")
    parser.add_argument("--run", type=Path, nargs="+", default=[], metavar="RUN", help="run folders of greengrad train")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args()
    rows = [row for run in options.run for row in run_rows(run)] or recorded_rows()
    print("| what | predicted, s | measured, s | error |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.what} | {row.predicted:.1f} | {row.measured:.1f} | {100 * row.error:+.0f} %{' (chosen by)' if row.chosen_by else ''} |"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"error": row.error} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

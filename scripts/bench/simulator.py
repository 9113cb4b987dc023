#!/usr/bin/env python3
"""What training a simulated user does to its goal alignment: SmolLM2-135M before, after fine-tuning, after GRPO, on held-out questions.

    python scripts/bench/simulator.py [--out DIR] [--steps 6] [--quick] [--json FILE]

Issues are made here: three of eight patterns of sentences, all held by the user, with other things and numbers in the held-out ones than in
those that are trained on; a script asks about each, and once more when all is told. What is recorded are the scripted user's
answers. Then `greengrad train` with configs/simulator.yaml, and each model answers every held-out question as in use.
Alignment is pipeline/alignment.py's own word, which GRPO is rewarded by: no outside judge. A finished run is kept: the same command
goes on.
"""

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.action import ASK_USER, render
from pipeline.actor import open_chat
from pipeline.alignment import MOST, reward_answer
from pipeline.config import Config, RolloutConfig, TasksConfig, UserConfig
from pipeline.config_io import dump_config, load_config
from pipeline.config_reward import JudgeConfig
from pipeline.convert import convert_smollm2, fetch_smollm2
from pipeline.engines import start_engines
from pipeline.expert import ScriptedPolicy
from pipeline.fake import MemoryMachines
from pipeline.journal import Journal
from pipeline.policy import VllmPolicy
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Rig, Slot, run_episode
from pipeline.stages.simulator import Question, load_questions
from pipeline.types import ToolCall
from pipeline.user import ScriptedSpeaker, User, judge_answer, make_answer, open_user, take_words
from sandbox import FakeSandbox, Image, Sandbox, make_tree
from tasks import Outcome, Task, Verdict
from tasks.store import write_config, write_task

ROOT = Path(__file__).parents[2]
THINGS = {
    "train": ("title", "date", "row", "key", "cookie", "header", "token", "path", "user", "ticket", "label", "query"),
    "test": ("invoice", "colour", "route", "village", "recipe", "signal"),
}
PARTS = (
    ("An empty {thing} gives {a}.", "What should an empty {thing} give?"),
    ("More than {a} {thing}s raise an error.", "What happens with very many, more than usual?"),
    ("The {thing}s are sorted by {b}.", "How are they sorted?"),
    ("After {a} seconds a {thing} is gone.", "How many seconds does it stay?"),
    ("Ideally it takes less than {a} ms.", "How long may it take, in ms?"),
    ("Two {thing}s of the same {b} become one.", "What if two have the same {b}?"),
    ("A {thing} without a {b} is left out.", "And without a {b}?"),
    ("The default {b} is {a}.", "Which default?"),
)
NOUNS = {"train": ("name", "size", "owner", "length"), "test": ("weight", "price", "country")}
USER = UserConfig(withhold=1.0)


def make_issues(split: str, count: int, tree: Path) -> Iterator[tuple[Task, list[str]]]:
    """Tasks whose issue is one sentence and three that the user holds, and the questions of an agent that wants to know all."""
    rng = np.random.default_rng([len(split), count])
    for number in range(count):
        words = {"thing": THINGS[split][number % len(THINGS[split])], "b": str(rng.choice(NOUNS[split])), "a": str(rng.integers(2, 99))}
        chosen = rng.permutation(len(PARTS))[:3]
        held = [PARTS[place][0].format(**words) for place in sorted(chosen)]
        statement = " ".join([f"`check` does not work for every {words['thing']}.", *held])
        questions = [PARTS[place][1].format(**words) for place in chosen]
        name = f"made__{split}-{number:02d}"
        yield (
            Task(name, "made/made", "1", "0" * 40, statement, Image("none", tree), "", "", "", "parse_log_pytest", ("t",), (), split=split),
            [
                *questions[:2],
                "What else should I know?",
                "Is there anything else?",
            ],
        )


async def read_patch(sandbox: Sandbox, image: Image) -> str:
    """Nothing is changed."""
    return ""


async def grade(task: Task, patch: str) -> Verdict:
    """Nothing is resolved."""
    return Verdict(task.instance_id, Outcome.NO_PATCH)


async def record(run: Path, suite: Path, split: str, issues: list[tuple[Task, list[str]]]) -> None:
    """A run folder in which a scripted agent has asked the scripted user."""
    rig = Rig(
        Chat(ByteTemplate(), user=USER),
        MemoryMachines(lambda: FakeSandbox()),
        read_patch,
        grade,
        RolloutConfig(max_turns=9, trees=False),
        100_000,
        5,
        60,
        user=User(ScriptedSpeaker(), USER),
    )
    with Journal(run) as journal:
        for task, questions in issues:
            texts = [*(render(ToolCall(ASK_USER, {"question": one})) for one in questions), render(ToolCall("submit", {}))]
            episode = await run_episode(ScriptedPolicy(rig.chat, task, texts), task, rig, Slot(task.instance_id, "g"))
            journal.record_episode(episode, 0)
    dump_config(Config(tasks=TasksConfig(suite=suite, split=split), user=USER), run / "config.yaml")


def prepare(folder: Path, train: int, test: int) -> None:
    """Model, suite and both records; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").is_dir():
        convert_smollm2(fetch_smollm2(folder.parent / "wheels"), folder / "model")
    if (folder / "asked-test" / "config.yaml").is_file():
        return
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / "check.py").write_text("def check(x):\n    return x\n")
    make_tree(folder / "source", folder / "tree.tar")
    write_config(folder / "suite", "made/made", ("train", "test"))
    for split, count in (("train", train), ("test", test)):
        issues = list(make_issues(split, count, folder / "tree.tar"))
        for task, _ in issues:
            write_task(folder / "suite", task, "FROM none\n", "made/made")
        asyncio.run(record(folder / f"asked-{split}", folder / "suite", split, issues))


def words_for(folder: Path, model: Path, steps: int) -> list[str]:
    """What makes configs/simulator.yaml small enough for two cores."""
    keys = {
        "tasks.suite": folder / "suite",
        "model.path": model,
        "model.context": 1024,
        "simulator.episodes": folder / "asked-train",
        "rft.epochs": 1,
        "rft.lr": 5e-5,
        "rft.batch_episodes": 8,
        "rollout.tasks_per_step": 6,
        "rollout.fill_groups": 4,
        "rollout.fill_rounds": 2,
        "rollout.max_new_tokens": 64,
        "optim.lr": 3e-6,
        "optim.batch_episodes": 32,
        "learner.dtype": "float32",
        "policy.dtype": "float32",
        "train.steps": steps,
    }
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


async def measure(folder: Path, model: Path) -> dict[str, float]:
    """Every held-out question once, over HTTP from a vLLM server at temperature 0: the very way of user.kind: model."""
    words = [*words_for(folder, model, 1), "--simulator.episodes", str(folder / "asked-test"), "--tasks.split", "test"]
    config = load_config(ROOT / "configs" / "simulator.yaml", words, Config)
    assert config.simulator is not None
    chat = open_chat(config)
    questions = list(load_questions(config, config.simulator, chat).values())
    policy = await start_engines(config, chat.template, folder / "engine.log")
    try:
        assert isinstance(policy, VllmPolicy)
        async with open_user(UserConfig(kind="model", server=JudgeConfig(url=policy.url))) as user:
            assert user is not None
            said = await asyncio.gather(*(user.speaker.say(one.cue) for one in questions))
    finally:
        await policy.close()
    return tell(questions, said)


def tell(questions: Sequence[Question], said: Sequence[str]) -> dict[str, float]:
    """Mean R, the shares without a fault and with all of R, and of each fault; every tenth answer to look at."""
    answers = [make_answer(one.cue, one.task, take_words(text, 1500)) for one, text in zip(questions, said, strict=True)]
    rewards, faults = [reward_answer(one) for one in answers], [judge_answer(one).faults for one in answers]
    for one, reward in list(zip(answers, rewards, strict=True))[::10]:
        print(f"   {one.question} -> {one.text[:150]!r} ({reward})", flush=True)
    counts = Counter(fault.value for found in faults for fault in found)
    return {
        "questions": float(len(answers)),
        "R": mean(rewards),
        "no fault": mean(not found for found in faults),
        "faithful": mean(reward == MOST for reward in rewards),
        **{fault: count / len(answers) for fault, count in sorted(counts.items())},
    }


def main() -> None:
    """Prepare, train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/simulator-bench"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    folder = options.out.absolute()
    prepare(folder, *((4, 2) if options.quick else (24, 12)))
    steps = 1 if options.quick else options.steps
    command = [sys.executable, "-m", "pipeline.cli", "train", str(ROOT / "configs" / "simulator.yaml"), "--run", str(folder / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *words_for(folder, folder / "model", steps)], cwd=folder, check=True, env=environment)
    figures: dict[str, dict[str, float]] = {}
    for name, model in {"before": folder / "model", "rft": folder / "run" / "tuned" / "model", "GRPO": folder / "run" / "model"}.items():
        figures[name] = asyncio.run(measure(folder, model))
        print(f"{name:8}", "  ".join(f"{key} {value:.3f}" for key, value in figures[name].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""mini-swe-agent's batch runner, unchanged, with a model that sleeps, and an environment that sleeps or its own Docker containers;
rollout.py and rollout_docker.py run it in an interpreter that has it.

Reads what to do from standard input (JSON) and writes milliseconds per turn (wall less sleeps, and processor time) as the last line.
Needs: pip install mini-swe-agent.
"""

import json
import os
import random
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any, ClassVar

os.environ["MSWEA_SILENT_STARTUP"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.test_models import DeterministicModel, make_output
from minisweagent.run.benchmarks import swebench

DONE = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


class Work:
    """What was asked for, and what was slept in all."""

    asked: ClassVar[dict[str, Any]] = {}
    slept, late, wall = 0.0, 0.0, 0.0
    lock = threading.Lock()

    @classmethod
    def sleep(cls, kind: str, *where: int) -> None:
        """As long as a recorded turn."""
        values = cls.asked[kind]
        seconds = values[random.Random(hash(where)).randrange(len(values))] * cls.asked["scale"]
        began = time.perf_counter()
        time.sleep(seconds)
        took = time.perf_counter() - began
        with cls.lock:
            cls.slept += took
            cls.late += took - seconds


class SleepingModel(DeterministicModel):
    """Says the same text each turn; the last one submits."""

    def __init__(self, **options: Any) -> None:
        turns = Work.asked["turns"]
        words = [Work.asked["answer"]] * (turns - 1) + ["I submit."]
        last = f"echo {DONE}; echo changed" if "image" in Work.asked else DONE
        commands = [Work.asked["command"]] * (turns - 1) + [last]
        super().__init__(outputs=[make_output(text, [{"command": one}], 0.0) for text, one in zip(words, commands, strict=True)], **options)
        self._seed = random.randrange(1 << 30)

    def query(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Late."""
        Work.sleep("model", self._seed, len(messages))
        return super().query(messages, **options)


class SleepingEnvironment(LocalEnvironment):
    """Runs nothing; the same output each time."""

    count = 0

    def execute(self, action: dict[str, Any], cwd: str = "", **options: Any) -> dict[str, Any]:
        """Late."""
        self.count += 1
        Work.sleep("tool", self.count)
        text = f"{DONE}\nchanged" if action["command"] == DONE else Work.asked["observation"]
        output = {"output": text, "returncode": 0, "exception_info": ""}
        self._check_finished(output)
        return output

    def get_template_vars(self, **more: Any) -> dict[str, Any]:
        """As its Docker environment has them: without this machine's name and variables."""
        return self.config.model_dump() | more


def main() -> None:
    """One batch that warms up, one that is measured."""
    Work.asked = json.load(sys.stdin)
    rows: list[dict[str, str]] = []
    sys.modules["datasets"] = types.ModuleType("datasets")
    sys.modules["datasets"].load_dataset = lambda path, split: rows  # type: ignore[attr-defined]
    sys.modules["rollout_mini"] = sys.modules["__main__"]
    plain = swebench.process_instance

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        plain(*arguments)
        with Work.lock:
            Work.wall += time.perf_counter() - started

    swebench.process_instance = timed
    run_batch(rows, 8, 8)  # imports and caches
    Work.wall, Work.slept, Work.late, begin = 0.0, 0.0, 0.0, time.process_time()
    run_batch(rows, Work.asked["count"], Work.asked["at_once"])
    spent, turns = time.process_time() - begin, Work.asked["count"] * Work.asked["turns"]
    per_turn = {"overhead_ms": Work.wall - Work.slept, "late_ms": Work.late, "cpu_ms": spent}
    print("\n" + json.dumps({name: 1e3 * seconds / turns for name, seconds in per_turn.items()}))


def run_batch(rows: list[dict[str, str]], count: int, workers: int) -> None:
    """One call of the batch runner; every instance must have been submitted."""
    image = {"image_name": Work.asked["image"]} if "image" in Work.asked else {}
    rows[:] = [{"instance_id": f"task-{number}", "problem_statement": Work.asked["statement"], **image} for number in range(count)]
    config = {
        "agent": {"system_template": "You fix bugs.", "instance_template": "{{task}}", "step_limit": 0, "cost_limit": 0.0},
        "model": {"model_class": "rollout_mini.SleepingModel", "model_name": "recorded", "observation_template": "{{output.output}}"},
        "environment": {"environment_class": "docker" if image else "rollout_mini.SleepingEnvironment"},
    }
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "bench.yaml", Path(folder) / "out"
        path.write_text(json.dumps(config))
        nothing = {"slice_spec": "", "filter_spec": "", "shuffle": False, "model": None, "model_class": None, "environment_class": None}
        swebench.main(subset="x", split="x", output=str(out), workers=workers, redo_existing=False, config_spec=[str(path)], **nothing)
        patches = json.loads((out / "preds.json").read_text())
    assert len(patches) == count and all(one["model_patch"].strip() == "changed" for one in patches.values()), patches


if __name__ == "__main__":
    main()

"""The loop on fakes, for the tests of training: one file to repair, three answers to choose from, exact policy gradient."""

from pathlib import Path

from pipeline.config import Config, CreditConfig, OptimConfig, RolloutConfig, TasksConfig, TrainConfig
from pipeline.fake import MemoryMachines, SoftmaxLearner, SoftmaxPolicy
from pipeline.prompt import ByteTemplate, Chat
from pipeline.rollout import Rig
from pipeline.train import World
from pipeline.types import Batch
from sandbox import FakeSandbox, Image, Sandbox
from tasks import Outcome, Task, Verdict

RIGHT = "```edit\ncalc.py\n<<<<<<<\na - b\n=======\na + b\n>>>>>>>\n```"
WRONG = "```edit\ncalc.py\n<<<<<<<\na - b\n=======\na * b\n>>>>>>>\n```"
SUBMIT = "```submit\n```"
CHAT = Chat(ByteTemplate())
TEXTS = (RIGHT, WRONG, SUBMIT)


def make_task(number: int) -> Task:
    return Task(
        instance_id=f"toy-{number}",
        repo="toy/toy",
        version="1",
        base_commit="0" * 40,
        problem_statement="add is wrong",
        image=Image("toy"),
        gold_patch="",
        test_patch="",
        eval_script="",
        log_parser="parse_log_pytest",
        fail_to_pass=("t",),
        pass_to_pass=(),
    )


async def read_patch(sandbox: Sandbox, image: Image) -> str:
    text = (await sandbox.read("/testbed/calc.py")).decode()
    return "" if "a - b" in text else text


async def grade_text(task: Task, patch: str) -> Verdict:
    if not patch:
        return Verdict(task.instance_id, Outcome.NO_PATCH)
    return Verdict(task.instance_id, Outcome.RESOLVED if "a + b" in patch else Outcome.UNRESOLVED)


def make_world(texts: tuple[str, ...] = TEXTS, learner: SoftmaxLearner | None = None) -> World:
    rollout = RolloutConfig(tasks_per_step=2, group_size=8, max_turns=4)
    machines = MemoryMachines(lambda: FakeSandbox(files={"/testbed/calc.py": b"def add(a, b):\n    return a - b\n"}))
    rig = Rig(CHAT, machines, read_patch, grade_text, rollout, context=10_000, command_seconds=5, episode_seconds=60)
    return World(SoftmaxPolicy(CHAT, texts), learner or SoftmaxLearner(CHAT, texts), rig, [make_task(0), make_task(1)])


def make_config(steps: int, seed: int = 0, **train_keys: int) -> Config:
    return Config(
        tasks=TasksConfig(suite=Path("none")),
        rollout=RolloutConfig(tasks_per_step=2, group_size=8, max_turns=4),
        credit=CreditConfig(length_threshold=10),
        optim=OptimConfig(lr=1.0),
        train=TrainConfig(steps=steps, seed=seed, **train_keys),
    )


class DyingLearner(SoftmaxLearner):
    """Dies in its n-th step, as a killed process would: nothing after it is done."""

    left = 3

    def step(self, batch: Batch) -> dict[str, float]:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().step(batch)

"""A training run to be killed: the loop with an exact learner on real machines (bubblewrap), every step slowed down a little.

python -m tests.killed_loop RUN SUITE STEPS MAX_LAG
"""

import asyncio
import sys
from pathlib import Path

from pipeline.config import Config, CreditConfig, LossConfig, OptimConfig, RolloutConfig, TasksConfig, TrainConfig
from pipeline.config_io import dump_config
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.journal import Journal
from pipeline.rollout import Rig
from pipeline.train import World, train
from sandbox import Limits, Pool, diff, open_backend
from tasks import Task, Verdict, load_suite
from tests.toy_loop import CHAT, RIGHT, SUBMIT, WRONG, grade_text

LOOK = "```bash\ndate; cat calc.py; echo seen >> notes.txt\n```"
LIMITS = Limits(memory_mb=256, pids=64, disk_mb=64, command_seconds=20.0, episode_seconds=300.0)


class SlowSoftmax(SoftmaxPolicy):
    """Takes a twentieth of a second for every answer."""

    async def sample(self, prompt, max_tokens, seed):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0.05)
        return await super().sample(prompt, max_tokens, seed)


async def grade(task: Task, patch: str) -> Verdict:
    await asyncio.sleep(0.05)
    return await grade_text(task, "".join(line for line in patch.splitlines() if line.startswith("+")))


async def main(run: Path, suite: Path, steps: int, max_lag: int) -> None:
    task = next(task for task in load_suite(suite).tasks if task.instance_id == "greengrad__toy-add")
    config = Config(
        tasks=TasksConfig(suite=suite),
        rollout=RolloutConfig(tasks_per_step=2, group_size=3, max_turns=4),
        credit=CreditConfig(length_threshold=10),
        loss=LossConfig(old_logprobs="engine"),
        optim=OptimConfig(lr=1.0),
        train=TrainConfig(steps=steps, save_every=2, max_lag=max_lag),
    )
    with Journal(run) as journal:
        dump_config(config, run / "config.yaml")
        async with Pool(open_backend("bubblewrap"), LIMITS, 4, ahead=1, reuse=16) as machines:
            rig = Rig(CHAT, machines, diff, grade, config.rollout, 1 << 20, 20.0, 120.0, retry_seconds=0.1)
            texts = (RIGHT, WRONG, SUBMIT, LOOK)
            await train(config, journal, World(SlowSoftmax(CHAT, texts), SoftmaxLearner(CHAT, texts, lr=1.0), rig, [task]))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))

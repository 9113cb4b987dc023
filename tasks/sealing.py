"""Before a task is attempted: its machines are sealed, and it is proved that they do not hold the answer; knows no model.

Done once for a task, its tree and its environment (the store remembers); again where it failed. A task without a proof is not an error of
the run: it carries the reason, and whoever attempts or grades it gets Outcome.INFRA, counted and without a reward.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from sandbox import Backend, Image, SandboxError, Secret, seal_all

from .base import Task

log = logging.getLogger(__name__)


async def seal_tasks(backend: Backend, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks, each with an image that is sealed, or with the reason why it must not be attempted (Task.unusable)."""
    open_tasks = [task for task in tasks if not task.unusable]
    secrets = [(task.image, Secret(task.base_commit, task.gold_patch, task.test_patch)) for task in open_tasks]
    found = dict(zip((task.instance_id for task in open_tasks), await seal_all(backend, secrets), strict=True))
    return tuple(_sealed(task, found[task.instance_id]) if task.instance_id in found else task for task in tasks)


def _sealed(task: Task, result: Image | SandboxError) -> Task:
    if isinstance(result, Image):
        return replace(task, image=result)
    log.warning("%s cannot be used: %s", task.instance_id, result)
    return replace(task, unusable=f"not sealed: {result}")

"""Before a task is attempted: its machines are sealed, and it is proved that they do not hold the answer; knows no model.

Done once for a task, its tree and its environment (the store remembers); again where it failed. A task without a proof is not an error of
the run: it carries the reason, and whoever attempts or grades it gets Outcome.INFRA, counted and without a reward.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from sandbox import Backend, Image, Secret, seal_all

from .base import Task

log = logging.getLogger(__name__)


async def seal_tasks(backend: Backend, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks, each with an image that is sealed, or with the reason why it must not be attempted (Task.unusable)."""
    secrets = [(task.image, Secret(task.base_commit, task.gold_patch, task.test_patch)) for task in tasks]
    found = await seal_all(backend, secrets)
    ready = []
    for task, result in zip(tasks, found, strict=True):
        if isinstance(result, Image):
            ready.append(replace(task, image=result, unusable=""))
        else:
            log.warning("%s cannot be used: %s", task.instance_id, result)
            ready.append(replace(task, unusable=f"not sealed: {result}"))
    return tuple(ready)

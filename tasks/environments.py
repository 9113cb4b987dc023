"""The environments that a suite needs, made where they are missing; knows requirements, not what is in them."""

import asyncio
from collections.abc import Callable

from sandbox import ensure_environment

from .base import Suite

Progress = Callable[[int, int, str], None]


async def prepare_suite(suite: Suite, progress: Progress | None = None) -> int:
    """Make the host part of every environment of the suite; returns how many there are. Before rollouts and grading on a new host.

    ValueError where a task asks for an environment that its requirements do not make (its task.yaml was edited).
    """
    wanted = {task.requirements: task.image.name for task in suite.tasks if task.requirements}
    for number, (requirements, name) in enumerate(wanted.items(), 1):
        made = await asyncio.to_thread(ensure_environment, requirements)
        if made != name:
            raise ValueError(f"{suite.path}: environment {name} is not what its requirements make ({made})")
        if progress:
            progress(number, len(wanted), name)
    return len(wanted)

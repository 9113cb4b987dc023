"""Problem statements in the words of a model at any OpenAI-compatible server; what it may not say is checked in tasks; trains nothing."""

import asyncio
from collections import Counter
from pathlib import Path

from tasks import Task, load_suite, objection, restate, restated

from .chat_policy import ChatPolicy, start_chat_policy
from .config import Config
from .config_io import load_config, override
from .prompt import ByteTemplate

ATTEMPTS = 2
"""Answers that are asked for before the old statement stays."""
MAX_TOKENS = 800
_SYSTEM = "You write bug reports as users of a Python library do: short, factual, in plain English, without a title."
_REQUEST = """Rewrite the report below as an issue that a user of the library would file.
Keep every value, the call and what was expected. Show the code as an indented block. Do not guess the cause, the place or the fix; name no
files, no tests and no function that the report does not name. Answer with the text alone.

"""


def rewriting(suite: Path, url: str, model: str | None) -> Config:
    """The configuration that asks a server for the statements of a suite."""
    words = [*override("tasks.suite", suite), *override("policy.url", url), *override("policy.api", "chat")]
    return load_config(None, [*words, *(override("policy.model", model) if model else [])], Config)


async def rewrite_statements(suite: Path, config: Config) -> Counter[str]:
    """Ask for another statement of every task that was not tried yet; how many were rewritten ("") or kept their own, by reason.

    PolicyError where the server fails for good: the same call goes on with the tasks that are left.
    """
    known = restated(suite)
    todo = [task for task in load_suite(suite).tasks if task.instance_id not in known]
    policy = await start_chat_policy(config)
    gate = asyncio.Semaphore(config.policy.max_requests)

    async def one(task: Task) -> None:
        async with gate:
            text, why = await _ask(policy, suite, task)
        restate(suite, task, text, why)

    try:
        async with asyncio.TaskGroup() as group:
            for task in todo:
                group.create_task(one(task))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        await policy.close()
    return Counter(restated(suite).values())


async def _ask(policy: ChatPolicy, suite: Path, task: Task) -> tuple[str, str]:
    """(a text, why it will not do)."""
    prompt = ByteTemplate().start(_SYSTEM, _REQUEST + task.problem_statement)
    text, why = "", ""
    for attempt in range(ATTEMPTS):
        answer = await policy.sample(prompt, MAX_TOKENS, attempt)
        text, why = answer.text, objection(suite, task, answer.text)
        if not why:
            break
    return text, why

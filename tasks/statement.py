"""The problem statement of a planted bug: where, and what a test says about it, without the fix; pure text."""

import re

from .mutate import Mutation

MESSAGE_CHARS = 220
"""Keeps a statement below 120 tokens."""


def write_statement(mutation: Mutation, messages: dict[str, str], secret: str) -> str:
    """Names file and function, and quotes the plainest failure (test id -> message). `secret` is the right line: it never appears."""
    text = f"`{mutation.function}` in `{mutation.path}` has a bug."
    told = sorted((plainness(message), test) for test, message in messages.items() if message.strip())
    for _, test in told:
        said = quote(messages[test])
        if secret.strip() not in said:
            return f"{text} The test `{_test_name(test)}` fails:\n\n    {said}\n"
    return f"{text} Its tests fail.\n"


def plainness(message: str) -> tuple[bool, int]:
    """An assertion that shows values comes first, then what is short."""
    return "assert" not in message, len(message)


def quote(message: str) -> str:
    """The first lines of a failure on one line: no addresses, no long tails."""
    lines = [line.strip() for line in message.strip().splitlines()]
    kept = [line for line in lines[:6] if line and not line.startswith(("?", "Use -v", "Full diff"))]
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(kept))
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= MESSAGE_CHARS else text[:MESSAGE_CHARS].rsplit(" ", 1)[0] + " ..."


def _test_name(test: str) -> str:
    return test.rsplit("::", 1)[-1].split("[")[0]

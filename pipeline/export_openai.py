"""An episode as one object of OpenAI's chat format for fine-tuning: messages with tool calls, tools, metadata; knows no file.

An answer's text beside its action is `content`, the action is a tool call, what came of it is the tool's message; a malformed answer
stays text and is answered by the user.
"""

from typing import Any

from .export_account import Account, call_id, dump, metadata, tool_definitions
from .types import Turn


def openai_row(account: Account) -> dict[str, Any]:
    """{"messages": [...], "tools": [...], "metadata": {...}}."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": account.system},
        {"role": "user", "content": account.statement},
    ]
    for number, turn in enumerate(account.episode.turns, 1):
        messages += _messages(account, number, turn)
    return {"messages": messages, "tools": tool_definitions(account.tools), "metadata": metadata(account)}


def _messages(account: Account, number: int, turn: Turn) -> list[dict[str, Any]]:
    if turn.call is None:
        return [{"role": "assistant", "content": turn.completion.text}, {"role": "user", "content": turn.observation}]
    function = {"name": turn.call.name, "arguments": dump(turn.call.arguments)}
    calls = [{"id": call_id(number), "type": "function", "function": function}]
    return [
        {"role": "assistant", "content": account.prose(turn), "tool_calls": calls},
        {"role": "tool", "tool_call_id": call_id(number), "content": turn.observation},
    ]

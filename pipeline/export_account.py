"""An episode told in words: messages, tool calls, metadata; what every export format is made of. Knows no format and no file."""

import json
import re
from dataclasses import dataclass
from typing import Any

from .action import OPTIONAL, REQUIRED, ActionFormat, Tools, prose
from .prompt import Chat
from .types import Episode, Turn

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_TOOLS = {
    "view": "Show a file, one function of it, or lines such as 10-40.",
    "edit": "Replace text that occurs exactly once in a file; an empty old text makes a new file.",
    "bash": "Run a command in the repository.",
    "submit": "Finish: the repository as it is now is the answer.",
    "ask_user": "Ask the user, who may know more than the report says.",
}


@dataclass(frozen=True, slots=True)
class Account:
    """One episode with what was said to the model before its first turn."""

    episode: Episode
    step: int
    model: str
    system: str
    statement: str
    action_format: ActionFormat
    tools: Tools
    real_ids: bool
    """Whether its ids and log-probs are a model's (not the bytes of a script or of a chat server)."""

    def prose(self, turn: Turn) -> str:
        """What a turn says beside its action; all of it where there is no action."""
        return prose(turn.completion.text, self.action_format) if turn.call else turn.completion.text


def tell(episode: Episode, step: int, model: str, chat: Chat, real_ids: bool) -> Account:
    """The account of an episode with at least one turn; ValueError where its prompt was not made with this chat."""
    prompt, empty = episode.plain_start or episode.turns[0].prompt, tuple(chat.template.start(chat.system, ""))
    shared = _common_length(prompt, empty)
    tail = empty[shared:]
    if not tail or prompt[len(prompt) - len(tail) :] != tail:
        raise ValueError(f"{episode.episode_id}: its prompt does not begin as those of this configuration and version do")
    statement = chat.template.decode(prompt[shared : len(prompt) - len(tail)])
    return Account(episode, step, model, chat.system, statement, chat.action_format, chat.tools, real_ids)


def metadata(account: Account) -> dict[str, Any]:
    """Who, how it ended and how it was graded; reward is null where it was not graded."""
    episode, verdict = account.episode, account.episode.verdict
    return {
        "episode_id": episode.episode_id,
        "group_id": episode.group_id,
        "instance_id": episode.instance_id,
        "step": account.step,
        "model": account.model,
        "stop": episode.stop.value,
        "reward": episode.reward,
        "verdict": verdict.outcome.value if verdict else None,
        "reason": verdict.reason if verdict else "",
        "evidence": verdict.evidence.value if verdict else "",
        "official": verdict.official if verdict else None,
        "error": episode.error,
        "turns": len(episode.turns),
        "seconds": episode.seconds,
        "patch": episode.patch,
    }


def call_id(number: int) -> str:
    """The id of the tool call of a turn, counted from 1."""
    return f"call_{number}"


def tool_definitions(tools: Tools = REQUIRED) -> list[dict[str, Any]]:
    """Our tools as OpenAI's function schema; every argument is text."""
    return [
        {"type": "function", "function": {"name": name, "description": _TOOLS[name], "parameters": _parameters(name, tools)}}
        for name in tools
    ]


def tokens_in(turn: Turn) -> int:
    """Tokens of the prompt, as a server or as we counted them."""
    return turn.completion.tokens_in or len(turn.prompt)


def tokens_out(turn: Turn) -> int:
    """Tokens of the answer, likewise."""
    return turn.completion.tokens_out or len(turn.completion.ids)


def dump(value: Any) -> str:
    """JSON in ASCII: a line separator of somebody's output ends no line. Half a surrogate pair, which Arrow refuses, becomes U+FFFD."""
    whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], whole)


def _parameters(name: str, tools: Tools) -> dict[str, Any]:
    known = (*tools[name], *OPTIONAL.get(name, ()))
    properties = {key: {"type": "string"} for key in known}
    return {"type": "object", "properties": properties, "required": list(tools[name]), "additionalProperties": False}


def _common_length(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))

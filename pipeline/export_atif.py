"""An episode as Harbor's ATIF (Agent Trajectory Interchange Format), version 1.7; knows no file.

Steps: system, user (the issue), then one agent step a turn with its tool call and observation. A model's token ids and log-probs are in
`metrics`, exactly as sampled; the text as sampled, the action in it, is extra.text. Left out: time stamps, cost.
"""

from importlib.metadata import version
from typing import Any

from .export_account import Account, call_id, metadata, tokens_in, tokens_out, tool_definitions
from .types import Turn

SCHEMA = "ATIF-v1.7"


def atif_trajectory(account: Account) -> dict[str, Any]:
    """One trajectory document."""
    turns = account.episode.turns
    steps: list[dict[str, Any]] = [
        {"step_id": 1, "source": "system", "message": account.system},
        {"step_id": 2, "source": "user", "message": account.statement},
    ]
    steps += [_step(account, number, turn) for number, turn in enumerate(turns, 1)]
    totals = {
        "total_prompt_tokens": sum(map(tokens_in, turns)),
        "total_completion_tokens": sum(map(tokens_out, turns)),
        "total_steps": len(steps),
    }
    return {
        "schema_version": SCHEMA,
        "session_id": account.episode.group_id,
        "trajectory_id": account.episode.episode_id,
        "agent": {
            "name": "greengrad",
            "version": version("greengrad"),
            "model_name": account.model,
            "tool_definitions": tool_definitions(account.tools),
        },
        "steps": steps,
        "final_metrics": totals,
        "extra": metadata(account),
    }


def _step(account: Account, number: int, turn: Turn) -> dict[str, Any]:
    step: dict[str, Any] = {
        "step_id": number + 2,
        "source": "agent",
        "message": account.prose(turn),
        "observation": {"results": [{"content": turn.observation}]},
        "metrics": _metrics(account, turn),
        "extra": {"text": turn.completion.text, "seconds_model": turn.seconds_model, "seconds_tool": turn.seconds_tool},
    }
    if turn.call:
        name = call_id(number)
        step["tool_calls"] = [{"tool_call_id": name, "function_name": turn.call.name, "arguments": turn.call.arguments}]
        step["observation"] = {"results": [{"source_call_id": name, "content": turn.observation}]}
    return step


def _metrics(account: Account, turn: Turn) -> dict[str, Any]:
    counts: dict[str, Any] = {"prompt_tokens": tokens_in(turn), "completion_tokens": tokens_out(turn)}
    if not account.real_ids:
        return counts
    sampled = turn.completion
    ids = {"prompt_token_ids": turn.prompt, "completion_token_ids": sampled.ids, "logprobs": sampled.logprobs}
    return {**counts, **ids, "extra": {"weights": sampled.version}}

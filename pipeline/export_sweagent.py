"""An episode as a .traj of SWE-agent 1.x (trajectory, history, info), with its .pred; knows no file.

To be read, shown and graded by its tools. It cannot be replayed there: our tools are not SWE-agent's, so there is no replay_config.
Left out: `query` (the history up to each step, which `history` holds), `state`, cost.
"""

from typing import Any

from .export_account import Account, dump, metadata, tokens_in, tokens_out
from .types import Episode, Stop, ToolCall, Turn

_EXITS = {
    Stop.MAX_TURNS: "exit_cost",
    Stop.CONTEXT_FULL: "exit_context",
    Stop.TIME: "exit_total_execution_time",
    Stop.FORMAT: "exit_format",
    Stop.RESOURCE: "exit_environment_error",
    Stop.STEP: "exit_forfeit",
    Stop.INFRA: "exit_environment_error",
}
"""SWE-agent's words; its limit of calls is exit_cost as well."""


def sweagent_traj(account: Account) -> dict[str, Any]:
    """What INSTANCE.traj holds."""
    episode = account.episode
    return {
        "trajectory": [_step(account, turn) for turn in episode.turns],
        "history": _history(account),
        "info": {
            "exit_status": _exit_status(episode),
            "submission": episode.patch,
            "model_stats": {
                "instance_cost": 0.0,
                "tokens_sent": sum(map(tokens_in, episode.turns)),
                "tokens_received": sum(map(tokens_out, episode.turns)),
                "api_calls": len(episode.turns),
            },
            "greengrad": metadata(account),
        },
        "environment": "greengrad",
    }


def sweagent_pred(account: Account) -> dict[str, str]:
    """What INSTANCE.pred holds."""
    episode = account.episode
    return {"model_name_or_path": account.model, "instance_id": episode.instance_id, "model_patch": episode.patch}


def _exit_status(episode: Episode) -> str:
    """A diff that was taken at a limit was submitted, as SWE-agent's autosubmission is."""
    if episode.stop is Stop.SUBMITTED:
        return "submitted"
    return f"submitted ({_EXITS[episode.stop]})" if episode.patch else _EXITS[episode.stop]


def _step(account: Account, turn: Turn) -> dict[str, Any]:
    return {
        "action": _action(turn.call),
        "observation": turn.observation,
        "response": turn.completion.text,
        "thought": account.prose(turn),
        "execution_time": turn.seconds_tool,
        "state": {},
        "query": [],
        "extra_info": {},
    }


def _history(account: Account) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [
        {"role": "system", "content": account.system, "agent": "main", "message_type": "system_prompt"},
        {"role": "user", "content": account.statement, "agent": "main", "message_type": "observation"},
    ]
    for turn in account.episode.turns:
        said = {"role": "assistant", "content": turn.completion.text, "thought": account.prose(turn), "action": _action(turn.call)}
        items.append({**said, "agent": "main", "message_type": "action"})
        items.append({"role": "user", "content": turn.observation, "agent": "main", "message_type": "observation"})
    return items


def _action(call: ToolCall | None) -> str:
    """A command as it is, another tool as its name and its arguments in JSON; "" where there was none."""
    if call is None:
        return ""
    if call.name == "bash":
        return call.arguments["command"]
    return f"{call.name} {dump(call.arguments)}" if call.arguments else call.name

"""The knob of a run that trains the simulated user, and which keys of a configuration such a run reads; nothing of what they do."""

from pathlib import Path
from typing import TYPE_CHECKING

from .config_objective import Section

if TYPE_CHECKING:
    from .config import Config


class SimulatorConfig(Section):
    """The run trains the simulated user, not an agent: `rft` on its faithful answers, where that section is given, then train.steps of
    GRPO (pipeline/stages/simulator.py). `tasks_per_step` counts questions, `group_size` answers."""

    episodes: Path
    """Run folder of interactive episodes: their questions are asked again, and its config.yaml says what their user held."""


UNREAD = (
    *("srl", "hindsight", "user", "reward", "planning.emphasis", "train.eval_every", "rft.episodes", "rft.per_task"),
    *(f"rollout.{key}" for key in ("policy", "max_turns", "action_format", "format_errors", "demonstration")),
    *(f"rollout.{key}" for key in ("anchors", "trees", "visible_tests", "prefix", "continuations")),
)
"""Keys of an agent's run: set, they would silently do nothing."""


def refuse_unread(config: "Config") -> None:
    """ValueError where `simulator` is given and a key that only an agent's run reads is not at its default, or nothing would be trained."""
    if config.simulator is None:
        return
    for key in UNREAD:
        *sections, leaf = key.split(".")
        section = getattr(config, sections[0]) if sections else config
        if section is not None and getattr(section, leaf) != type(section).model_fields[leaf].default:
            raise ValueError(f"{key} is not read with simulator, which trains the user and not an agent: leave it out, or make two runs")
    if config.rft is None and not config.train.steps:
        raise ValueError("simulator with train.steps: 0 and without rft trains nothing: give one of the two")

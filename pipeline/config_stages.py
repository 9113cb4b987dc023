"""The knobs of the stages before reinforcement; knows their names, nothing of what they do."""

from pathlib import Path

from pydantic import Field

from .config_objective import Section


class RftConfig(Section):
    """Rejection fine-tuning: passing demonstrations, malformed turns masked (pipeline/stages/rft.py)."""

    episodes: Path | None = None
    """Run folder with the demonstrations: given, `greengrad train` fine-tunes on them instead of reinforcing."""
    per_task: int | None = Field(None, ge=1)
    """The most episodes of one task, those recorded first; None: all. Episodes with the same actions count once either way."""
    epochs: int = Field(1, ge=1)
    lr: float = Field(5e-6, gt=0)
    batch_episodes: int = Field(64, ge=1)
    warmup_steps: int = Field(10, ge=0)


class SrlConfig(Section):
    """Step-wise reward from expert actions, before train.steps of reinforcement (pipeline/stages/srl.py). The defaults are the paper's."""

    episodes: Path
    """Run folder whose resolved episodes are the expert's."""
    steps: int = Field(1, ge=1)
    """Updates."""
    batch: int = Field(512, ge=1)
    """Prompts of an update: exactly so many whose rewards differ, or there is no update."""
    rounds: int = Field(8, ge=1)
    """The most often that `batch` prompts are tried for one update."""
    answers: int = Field(8, ge=2)
    """To each prompt."""
    history: int = Field(2, ge=0)
    """The expert's last turns that a prompt shows after the issue."""
    min_std: float = Field(0.01, ge=0)
    """Of a prompt's rewards: one where they differ less is tried in vain."""
    lr: float = Field(5e-7, gt=0)

"""The knobs of the loop; knows their names, nothing of what they do."""

from typing import Literal

from pydantic import Field

from .config_objective import Section


class TrainConfig(Section):
    """The loop."""

    steps: int = Field(1, ge=0)
    save_every: int = Field(1, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations of held-out tasks, one after the last included; the best model is kept in RUN/best. 0: none."""
    eval_split: str = "test"
    """Of tasks.suite: the held-out tasks."""
    max_lag: int = Field(0, ge=0)
    """How many publishes a trained token's weights may lie back. 0: strictly on-policy, a step's episodes begin after the update of the
    last; k: those of k further steps run while the learner trains."""
    on_stale: Literal["wait", "mask", "drop"] = "wait"
    """wait: episodes are admitted so that no token grows older. mask, drop: those of one step more are admitted, and tokens that are too
    old by then carry no loss, or their episodes leave their groups (pipeline/staleness.py: what that favours)."""
    restarts: int = Field(3, ge=0)
    """How often in a row, without a committed step in between, a run that lost its engine, a rank of the learner or all its nodes opens
    them again and goes on by itself; then it stops, and the same command goes on."""
    stall_seconds: float = Field(7200.0, gt=0)
    """When nothing was recorded for so long, RUN/logs gets a file that says who waits for whom, and the run is opened again. Longer than
    the longest step."""
    seed: int = 0

    @property
    def ahead(self) -> int:
        """Steps whose episodes run beside the one that is waited for."""
        return self.max_lag + (self.on_stale != "wait")

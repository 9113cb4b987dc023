"""The knobs of feedback from what came of each turn; knows their names, nothing of what they do."""

from typing import Self

from pydantic import Field, model_validator

from .config_objective import Section
from .config_reward import JudgeConfig


class HindsightConfig(Section):
    """Evaluative and directive feedback in place of credit (pipeline/stages/hindsight.py)."""

    evaluative_weight: float = Field(1.0, ge=0)
    """w_b of A = w_b r + w_o (log pi(a | s, h) - log pi(a | s))."""
    directive_weight: float = Field(1.0, ge=0)
    """w_o; 0: no hint is made and nothing is scored twice."""
    bound: float | None = Field(None, gt=0)
    """The directive part of a token is at most so large, in nats, before w_o; None: as it is, which is the paper's."""
    top_k: int | None = Field(None, ge=1)
    """The directive part as w_o KL(policy || teacher) over the teacher's so many likeliest tokens and one bin for the rest, in place of the
    sampled token's log-ratio; None: the sampled token alone."""
    hint_chars: int = Field(400, ge=40)
    """What the teacher sees of a hint: head and tail."""
    judge: JudgeConfig | None = None
    """A model that says r of each turn; None: rules do (pipeline/hints.py)."""
    votes: int = Field(1, ge=1)
    """Answers of the judge for each turn, of which the majority counts; more than one are sampled at temperature 1."""

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        fields = type(self).model_fields
        if not self.evaluative_weight and not self.directive_weight:
            raise ValueError("hindsight.evaluative_weight and hindsight.directive_weight are both 0: every advantage would be 0")
        if self.judge is not None and not self.evaluative_weight:
            raise ValueError("hindsight.judge is read only with hindsight.evaluative_weight > 0")
        if self.judge is None and self.votes != fields["votes"].default:
            raise ValueError("hindsight.votes is read only with hindsight.judge")
        if self.top_k is not None and self.bound is not None:
            raise ValueError("hindsight.bound is not read with hindsight.top_k: a divergence is not an advantage")
        for key in ("hint_chars", "bound", "top_k"):
            if not self.directive_weight and getattr(self, key) != fields[key].default:
                raise ValueError(f"hindsight.{key} is read only with hindsight.directive_weight > 0")
        return self

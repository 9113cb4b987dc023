"""The knobs of planning emphasis; knows their names, nothing of what they do."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from .config_objective import Section


class PlanningConfig(Section):
    """Which tokens plan, and whether that counts (pipeline/planning.py). They are measured in every run, emphasised in none by default."""

    grams: Path | None = None
    """The strategic grams, one a line (`greengrad grams` mines them); None: a short list of ours, pipeline/grams.txt."""
    emphasis: Literal["off", "hicra", "entropy_topk", "random"] = "off"
    """hicra: planning tokens get A + alpha |A|. entropy_topk: the `top` share of most uncertain tokens do. random: as many tokens of the
    same |A| as hicra would take, drawn at random: the placebo to compare with."""
    alpha: float = Field(0.2, ge=0)
    top: float = Field(0.2, gt=0, le=1)
    """Of entropy_topk."""
    cap: float = Field(0.15, gt=0, le=1)
    """The most of all tokens that may plan; beyond it the grams that cover most tokens are left out, and that is warned of."""

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        readers = {"alpha": ("hicra", "entropy_topk", "random"), "top": ("entropy_topk",)}
        for key, kinds in readers.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.emphasis not in kinds:
                raise ValueError(f"planning.{key} = {getattr(self, key)!r} is not read by planning.emphasis {self.emphasis}")
        return self

"""The knobs of credit and loss, and which of them read which; knows nothing of what they do.

config.py puts these sections into the whole.
"""

from collections.abc import Callable
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration: frozen, closed to unknown keys, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


OF_TURNS = ("ms_grpo", "next_turn", "return_to_go", "turn_normalised", "gigpo", "mt_grpo")
CREDIT_READERS = {
    "format_penalty": OF_TURNS,
    "turn_reward": OF_TURNS,
    "gamma": ("return_to_go", "gigpo", "potential"),
    "turn_weight": ("gigpo",),
    "outcome_weight": ("mt_grpo",),
    "draws": ("episode", "episode_no_std", "leave_one_out", "ms_grpo"),
}
"""Key of CreditConfig -> the kinds that read it."""


class CreditConfig(Section):
    """Rewards -> advantages (pipeline/credit.py)."""

    kind: Literal[
        "episode",
        "episode_no_std",
        "leave_one_out",
        "ms_grpo",
        "next_turn",
        "return_to_go",
        "turn_normalised",
        "gigpo",
        "mt_grpo",
        "potential",
        "vine",
    ] = "episode"
    length_threshold: int = Field(10, ge=1)
    """L_thr: turns from which the length penalty falls from 0 to -1 at rollout.max_turns; >= max_turns switches it off."""
    length_penalty_on: Literal["all", "resolved"] = "all"
    filter_on: Literal["outcome", "shaped"] = "outcome"
    """A group whose outcomes (or shaped rewards) are all equal carries no signal and is dropped."""
    truncated: Literal["keep", "drop"] = "keep"
    """Episodes that a limit ended: kept, as negative examples of looping (finding F1), or left out."""
    min_std: float = Field(0.0, ge=0)
    """A group whose outcomes (or shaped rewards) have no larger standard deviation carries no signal either."""
    min_graded: int = Field(2, ge=2)
    """A group with fewer graded episodes is dropped."""
    format_penalty: float = Field(0.0, ge=0)
    """What a malformed turn costs, in the schemes that read a turn's own reward."""
    turn_reward: Literal["none", "tests"] = "none"
    """What a turn earns in those schemes: nothing, or the change of the share of visible tests that pass (rollout.visible_tests)."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per turn of return_to_go, gigpo and potential."""
    turn_weight: float = Field(1.0, ge=0)
    """w of gigpo: A_episode + w A_step."""
    outcome_weight: float = Field(1.0, ge=0)
    """lambda of mt_grpo: A_turn + lambda A_outcome."""
    samples: Literal["merged", "per_turn"] = "merged"
    """One sample per run of turns that share their history, or one per turn (more context tokens, the same gradient)."""
    draws: int = Field(0, ge=0)
    """Draw so many episodes of a batch with P(e) = |A_e| / sum |A|, with replacement; 0: take each once."""
    draw_weights: Literal["unbiased", "priority"] = "unbiased"
    """Weight 1 / (draws P(e)), so that the expected gradient is the whole batch's; or none, so that a large |A| counts more."""
    draw_seed: int = 0

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        """A key that the chosen kind does not read would silently do nothing."""
        for key, readers in CREDIT_READERS.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.kind not in readers:
                raise ValueError(f"credit.{key} = {getattr(self, key)!r} is not read by credit.kind {self.kind} (by {', '.join(readers)})")
        if not self.draws and (self.draw_weights != "unbiased" or self.draw_seed):
            raise ValueError("credit.draw_weights and credit.draw_seed are read only where credit.draws is given")
        if self.kind in ("next_turn", "turn_normalised", "mt_grpo") and self.turn_reward == "none" and not self.format_penalty:
            raise ValueError(f"credit.kind {self.kind} needs a reward per turn: set credit.turn_reward: tests or credit.format_penalty")
        return self


LOSS_READERS: dict[str, tuple[str, Callable[["LossConfig"], bool]]] = {
    "dual_clip": ("loss.kind dapo or gspo", lambda loss: loss.kind != "cispo"),
    "constant_tokens": ("loss.aggregation constant", lambda loss: loss.aggregation == "constant"),
    "correction_mode": ("a loss.correction_level", lambda loss: loss.correction_level != "off"),
    "correction_cap": ("a loss.correction_level", lambda loss: loss.correction_level != "off"),
    "correction_floor": ("loss.correction_mode mask", lambda loss: loss.correction_level != "off" and loss.correction_mode == "mask"),
    "kl_estimator": ("loss.kl_coef > 0", lambda loss: loss.kl_coef > 0),
}
"""Key of LossConfig -> what reads it, in words, and whether it is read."""


class LossConfig(Section):
    """The objective (pipeline/loss.py)."""

    kind: Literal["dapo", "gspo", "cispo"] = "dapo"
    """The clipped ratio of each token (DAPO, PPO), of a whole sequence (GSPO), or a clipped and detached weight (CISPO)."""
    eps_low: float = Field(0.2, ge=0, le=1)
    """The ratio is held above 1 - eps_low (1: no bound below, as CISPO has it) ..."""
    eps_high: float = Field(0.3, ge=0)
    """... and below 1 + eps_high. A sequence's ratio moves less than a token's: GSPO's paper has 3e-4 and 4e-4."""
    dual_clip: float | None = Field(None, gt=1)
    """Where A < 0, the gain is held above dual_clip * A, so that one token with a large ratio moves no more than that (PPO's c = 3)."""
    aggregation: Literal["token", "episode", "group", "constant"] = "token"
    """Mean over all sampled tokens of the batch (DAPO), or of each episode (GRPO) or group and then over those; or
    sum / (episodes * constant_tokens)."""
    constant_tokens: int = Field(1024, ge=1)
    """L_max of Dr.GRPO (arXiv:2503.20783), for aggregation constant: one number for all batches, so that lengths bias nothing."""
    old_logprobs: Literal["learner", "engine"] = "learner"
    """pi_old recomputed by the learner before the first minibatch, or the engine's own."""
    correction_level: Literal["off", "token", "sequence", "geometric"] = "off"
    """Weight pi_old / pi_engine, detached: of each token, of the product over a sequence, or of its geometric mean. It corrects for an
    engine that differs from the learner and for tokens of older weights (decoupled PPO); a product grows with the length."""
    correction_mode: Literal["truncate", "mask"] = "truncate"
    """A weight above correction_cap becomes the cap; or one outside [correction_floor, correction_cap] becomes 0."""
    correction_cap: float = Field(2.0, gt=0)
    correction_floor: float = Field(0.5, ge=0)
    kl_coef: float = Field(0.0, ge=0)
    """Of the KL divergence from the model at model.path, of which each rank then holds a second copy."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """How it is estimated on sampled tokens (pipeline/loss.py: k3's gradient is another divergence's)."""
    entropy_coef: float = Field(0.0, ge=0)
    """Of the bonus for the entropy of each sampled token's distribution."""

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        """A key that the other keys make silent would silently do nothing."""
        for key, (reader, is_read) in LOSS_READERS.items():
            if getattr(self, key) != type(self).model_fields[key].default and not is_read(self):
                raise ValueError(f"loss.{key} = {getattr(self, key)!r} is read only with {reader}")
        if self.correction_level != "off" and self.old_logprobs == "engine":
            raise ValueError("loss.correction_level: with loss.old_logprobs engine the weight is always 1; choose old_logprobs learner")
        if self.correction_mode == "mask" and self.correction_floor >= self.correction_cap:
            raise ValueError("loss.correction_floor must be below loss.correction_cap")
        return self

"""The knobs of `greengrad plan`: machines, and what episodes are expected to be; a run reads none of them."""

from typing import Literal

from pydantic import Field

from .config_objective import Section


class EpisodeEstimate(Section):
    """A mean episode. What is not given is as long as it may become, so that the plan is an upper bound."""

    turns: float | None = Field(None, gt=0)
    """None: rollout.max_turns."""
    prompt_tokens: float | None = Field(None, gt=0)
    """Before the first turn; None: an eighth of model.context."""
    sampled_tokens: float | None = Field(None, gt=0)
    """By the model in a turn, at most rollout.max_new_tokens; None: 27 % of what fills the context, as the quickstart's experts."""
    observation_tokens: float | None = Field(None, ge=0)
    """That a turn adds besides; None: what fills the context."""
    tool_seconds: float = Field(0.15, ge=0)
    """Of a turn, in its machine: the mean of the turns recorded in scripts/bench/rollout.py."""
    grade_seconds: float = Field(0.72, ge=0)
    """Of a patch, the start of its machine included: the recipe small in Docker (docs/LOG.md)."""
    signal: float = Field(1.0, gt=0, le=1)
    """Share of the groups that are trained on."""


class Placement(Section):
    """What `greengrad plan` computes with."""

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    gpu_memory_gb: float = Field(80.0, gt=0)
    parameters_b: float | None = Field(None, gt=0)
    """Billions of parameters; read from the model folder where it is at hand."""
    gpu: Literal["auto", "A100", "H100", "H200", "B200"] = "auto"
    """Whose rates are the defaults of the keys below (pipeline/hardware.py); auto: H200 from 140 GB on, else H100. Without GPUs: the two
    processors that docs/LOG.md was measured on."""
    tflops: float | None = Field(None, gt=0)
    """Peak of one GPU, or of the machine where there is none, in 1e12 FLOP/s."""
    learner_share: float | None = Field(None, gt=0, le=1)
    """Of that peak, in training ..."""
    engine_share: float | None = Field(None, gt=0, le=1)
    """... and in sampling, while it computes."""
    memory_gb_s: float | None = Field(None, gt=0)
    """Peak bandwidth of its memory."""
    memory_share: float | None = Field(None, gt=0, le=1)
    """Of that peak, while a step of sampling reads weights and KV cache."""
    network_gb_s: float | None = Field(None, gt=0)
    """From one GPU to those of other nodes; within one node the link's rate of the GPU is taken."""
    storage_gb_s: float | None = Field(None, gt=0)
    """At which a folder of weights is written, and read again by all engines at once."""
    episode: EpisodeEstimate = EpisodeEstimate()

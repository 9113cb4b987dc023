"""The configuration: YAML + dotted overrides -> frozen pydantic models; every key has a reader, an unknown key is an error.

Knows the names of the knobs, nothing of what they do.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sandbox import Limits


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """The model that acts and learns."""

    path: Path
    """Folder with config.json, tokenizer and safetensors (a Hugging Face id works where there is internet access)."""
    context: int = Field(2048, ge=64)
    """Tokens of one episode, prompt and observations included; a full context ends the episode."""
    rope_yarn: float = Field(1.0, ge=1.0)
    """YaRN factor, set in training and in vLLM alike."""


class TasksConfig(Section):
    """Which tasks are attempted."""

    suite: Path
    split: str = "train"
    audit: float = Field(1.0, ge=0, le=1)
    """Share of the resolved patches on which held-out variants of the tests are run (tasks/audit.py); what they find is suspect."""
    limit: int | None = Field(None, ge=1)
    repositories: tuple[str, ...] = ()
    """Only tasks of these (OWNER/NAME); empty: of all."""
    languages: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ()
    max_patch_lines: int | None = Field(None, ge=1)
    """Lines that the gold patch adds and removes. arXiv:2508.03501 trains on fewer than 500 ..."""
    max_files: int | None = Field(None, ge=1)
    """... in at most 7 files."""
    history: tuple[Path, ...] = ()
    """Runs whose attempts choose the pool: tasks never solved there, or in 2/3 of the attempts, are left out (pipeline/curriculum.py)."""
    decontaminate: tuple[Path, ...] = ()
    """Evaluation suites: no task of one of their repositories is used."""


class SandboxConfig(Section):
    """Where the commands run."""

    backend: Literal["auto", "docker", "bubblewrap"] = "auto"
    hosts: tuple[str, ...] = ()
    """Docker daemons that share the work ("unix://...", "tcp://..."); empty: the one that DOCKER_HOST names, or this machine's."""
    image_gb: float = Field(100.0, gt=0)
    """What images of ours may take of a Docker host's disk; those longest unused are removed before another is fetched."""
    concurrency: int = Field(8, ge=1)
    """Machines open at once."""
    reuse: int = Field(16, ge=1)
    """Episodes that one machine serves; in between it is wiped, and that is proved. 1: a new one each time. Grading always has new ones."""
    memory_mb: int = Field(2048, ge=64)
    pids: int = Field(256, ge=16)
    cpus: float = Field(1.0, gt=0)
    disk_mb: int = Field(512, ge=16)
    output_bytes: int = Field(65_536, ge=256)
    command_seconds: float = Field(60.0, gt=0)
    episode_seconds: float = Field(1800.0, gt=0)

    @property
    def limits(self) -> Limits:
        """The part that a backend needs."""
        return Limits(
            memory_mb=self.memory_mb,
            pids=self.pids,
            cpus=self.cpus,
            disk_mb=self.disk_mb,
            output_bytes=self.output_bytes,
            command_seconds=self.command_seconds,
            episode_seconds=self.episode_seconds,
        )


class RolloutConfig(Section):
    """How episodes are made. Every decoding knob but temperature is off, and is sent explicitly with each request."""

    policy: str = "model"
    """"model" (the served model), "gold" (the scripted expert), "noop", or "script:FILE"."""
    tasks_per_step: int = Field(8, ge=1)
    group_size: int = Field(8, ge=1)
    max_turns: int = Field(8, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    """Per turn."""
    temperature: float = Field(1.0, gt=0)
    action_format: Literal["fenced", "tool_json"] = "fenced"
    """One fenced block whose tag is the tool, or JSON between <tool_call> tags (pipeline/action.py)."""
    format_errors: int = Field(3, ge=1)
    """Malformed turns in a row that end the episode (Stop.FORMAT)."""
    observation_chars: int = Field(1500, ge=100)
    """What the model sees of one command's output: head and tail."""
    anchors: bool = False
    """Hash the working tree before each action, for credit.kind gigpo: one command a turn that reads every file of the tree."""
    visible_tests: str = ""
    """A command that runs the visible tests before each action, in the agent's machine and on its time (pipeline/probe.py); "": none."""
    infra_retries: int = Field(2, ge=0)
    infra_stop: int = Field(8, ge=1)
    """Episodes in a row without a verdict (INFRA, after all retries) that stop the run."""


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
    ] = "episode"
    length_threshold: int = Field(10, ge=1)
    """L_thr: turns from which the length penalty falls from 0 to -1 at rollout.max_turns; >= max_turns switches it off."""
    length_penalty_on: Literal["all", "resolved"] = "all"
    filter_on: Literal["outcome", "shaped"] = "outcome"
    """A group whose outcomes (or shaped rewards) are all equal carries no signal and is dropped."""
    truncated: Literal["keep", "drop"] = "keep"
    """Episodes that a limit ended: kept, as negative examples of looping (finding F1), or left out."""
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


class LossConfig(Section):
    """The objective (pipeline/loss.py)."""

    eps_low: float = Field(0.2, ge=0, lt=1)
    eps_high: float = Field(0.3, ge=0)
    aggregation: Literal["token", "group", "constant"] = "token"
    """Mean over all sampled tokens of the batch (DAPO), or of each group and then over groups; or sum / (episodes * constant_tokens)."""
    constant_tokens: int = Field(1024, ge=1)
    """L_max of Dr.GRPO (arXiv:2503.20783), for aggregation constant: one number for all batches, so that lengths bias nothing."""
    old_logprobs: Literal["learner", "engine"] = "learner"
    """pi_old recomputed by the learner before the first minibatch, or the engine's own."""
    correction: Literal["off", "truncate"] = "off"
    """Train-inference correction: weight min(pi_learner_old / pi_engine, correction_cap) per token, detached."""
    correction_cap: float = Field(2.0, gt=0)


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    batch_episodes: int = Field(128, ge=1)
    """Samples of one optimiser step: an iteration with more takes several."""


class LearnerConfig(Section):
    """The DeepSpeed engine."""

    ranks: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; master weights are always fp32."""
    micro_tokens: int = Field(2048, ge=64)
    """Token budget of one micro-batch, padding included."""
    head_chunk: int = Field(1024, ge=1)
    """Tokens whose logits exist at one time."""
    activation_checkpointing: bool = False
    offload_optimizer: Literal["none", "cpu"] = "none"
    seed: int = 0


class PolicyConfig(Section):
    """The engine that samples."""

    api: Literal["tokens", "chat"] = "tokens"
    """tokens: vLLM, ids and log-probs, for training. chat: any OpenAI-compatible server at `url`, text alone, for evaluation."""
    url: str | None = None
    """A running server; None starts vLLM."""
    model: str | None = None
    """Its name at a chat server; None: the first that the server names."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds a chat server's key; it is written nowhere."""
    body: dict[str, str | int | float | bool] = {}
    """More fields of a chat request, or other values for ours (max_completion_tokens, reasoning_effort ...)."""
    attempts: int = Field(8, ge=1)
    """Of one chat request, with waits that double from 1 s or are what the server asks for."""
    requests_per_minute: float | None = Field(None, gt=0)
    """To a chat server, over all episodes."""
    request_seconds: float = Field(600.0, gt=0)
    """Limit of one chat request."""
    price_in: float = Field(0.0, ge=0)
    """Of a million tokens of prompts, for the cost of an evaluation ..."""
    price_out: float = Field(0.0, ge=0)
    """... and of answers."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_requests: int = Field(32, ge=1)
    memory_gb: float = Field(2.0, gt=0)
    """KV-cache on the CPU; on a GPU the fraction below."""
    gpu_fraction: float = Field(0.9, gt=0, le=1)
    tensor_parallel: int = Field(1, ge=1)
    publish_tolerance: float = Field(0.08, gt=0)
    """Mean |log p(learner) - log p(engine)| over probe tokens after a publish; above it the run stops."""
    seed: int = 0


class TrainConfig(Section):
    """The loop."""

    steps: int = Field(1, ge=0)
    save_every: int = Field(1, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    seed: int = 0


class RftConfig(Section):
    """Rejection fine-tuning: passing demonstrations, malformed turns masked."""

    episodes: Path | None = None
    """Run folder with the demonstrations: given, `greengrad train` fine-tunes on them instead of reinforcing."""
    epochs: int = Field(1, ge=1)
    lr: float = Field(5e-6, gt=0)
    batch_episodes: int = Field(64, ge=1)
    warmup_steps: int = Field(10, ge=0)


class Placement(Section):
    """What `greengrad plan` computes with."""

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    gpu_memory_gb: float = Field(80.0, gt=0)
    parameters_b: float | None = Field(None, gt=0)
    """Billions of parameters; read from the model folder where it is at hand."""


class Config(Section):
    """A whole run: what `greengrad train` and `greengrad rollout` read."""

    name: str = "run"
    model: ModelConfig | None = None
    tasks: TasksConfig
    sandbox: SandboxConfig = SandboxConfig()
    rollout: RolloutConfig = RolloutConfig()
    credit: CreditConfig = CreditConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    learner: LearnerConfig = LearnerConfig()
    policy: PolicyConfig = PolicyConfig()
    train: TrainConfig = TrainConfig()
    rft: RftConfig | None = None
    placement: Placement = Placement()

    @model_validator(mode="after")
    def _demand_what_credit_reads(self) -> Self:
        """A scheme whose inputs are not recorded is an error here, never zeros later."""
        if self.credit.kind == "gigpo" and not self.rollout.anchors:
            raise ValueError("credit.kind gigpo needs the working tree's hash: set rollout.anchors: true")
        if (self.credit.kind == "potential" or self.credit.turn_reward == "tests") and not self.rollout.visible_tests:
            what = "kind potential" if self.credit.kind == "potential" else "turn_reward tests"
            raise ValueError(f"credit.{what} needs a run of the visible tests: set rollout.visible_tests to a command")
        if self.credit.draws and self.credit.draw_weights == "unbiased" and self.loss.aggregation != "token":
            raise ValueError("credit.draw_weights unbiased is made for loss.aggregation token; choose that, or draw_weights priority")
        return self

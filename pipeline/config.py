"""The configuration: YAML + dotted overrides -> frozen pydantic models; every key has a reader, an unknown key is an error.

Knows the names of the knobs, nothing of what they do.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sandbox import Limits

from .config_hindsight import HindsightConfig as HindsightConfig
from .config_learner import LearnerConfig as LearnerConfig
from .config_learner import LoraConfig as LoraConfig
from .config_objective import CreditConfig as CreditConfig
from .config_objective import LossConfig as LossConfig
from .config_objective import Section as Section
from .config_placement import EpisodeEstimate as EpisodeEstimate
from .config_placement import Placement as Placement
from .config_planning import PlanningConfig as PlanningConfig
from .config_policy import PolicyConfig as PolicyConfig
from .config_policy import engine_defaults as engine_defaults
from .config_reward import RewardConfig as RewardConfig
from .config_simulator import SimulatorConfig as SimulatorConfig
from .config_simulator import refuse_unread
from .config_stages import RftConfig as RftConfig
from .config_stages import SrlConfig as SrlConfig
from .config_train import TrainConfig as TrainConfig
from .config_user import UserConfig as UserConfig


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

    @model_validator(mode="after")
    def _refuse_what_bubblewrap_does_not_read(self) -> Self:
        for key in ("hosts", "image_gb"):
            if self.backend == "bubblewrap" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"sandbox.{key} = {getattr(self, key)!r} is read by sandbox.backend docker, not by bubblewrap")
        return self

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


class PrefixConfig(Section):
    """Episodes that start in the middle of recorded ones (pipeline/prefix.py)."""

    run: Path
    """Run folder whose resolved episodes are started from; a task that has none starts at its beginning."""
    turn: int = 2
    """The first turn that the policy plays: from 1, or from the end (-1: the last)."""


class RolloutConfig(Section):
    """How episodes are made. Every decoding knob but temperature is off, and is sent explicitly with each request."""

    policy: str = "model"
    """"model" (the served model), "gold" (the scripted expert), "noop", or "script:FILE"."""
    tasks_per_step: int = Field(8, ge=1)
    fill_groups: int | None = Field(None, ge=1)
    """Dynamic sampling (DAPO): rounds of tasks_per_step tasks until so many groups carry a signal; those beyond are thrown away, in the
    order of their tasks and not of their end. None: one round, whatever comes of it."""
    fill_rounds: int = Field(4, ge=1)
    """Rounds after which a step goes on with what it has; read with fill_groups."""
    fill_short: Literal["train", "skip"] = "train"
    """What becomes of a step that has fewer groups with a signal even then: it trains on those, or on none."""
    group_size: int = Field(8, ge=1)
    max_turns: int = Field(8, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    """Per turn."""
    temperature: float = Field(1.0, gt=0)
    action_format: Literal["fenced", "tool_json"] = "fenced"
    """One fenced block whose tag is the tool, or JSON between <tool_call> tags (pipeline/action.py)."""
    format_errors: int = Field(3, ge=1)
    """Malformed turns in a row that end the episode (Stop.FORMAT)."""
    demonstration: Path | None = None
    """A worked example in every prompt, for collection by `rollout` alone: a text file, or a run folder, whose shortest resolved episode of
    another task is shown, as long as it leaves room for an answer. Fine-tuning on the episodes leaves it out."""
    observation_chars: int = Field(1500, ge=100)
    """What the model sees of one command's output: head and tail."""
    anchors: bool = False
    """Hash the working tree before each action, for credit.kind gigpo: one command a turn that reads every file of the tree."""
    trees: bool = True
    """Hash the working tree after each command and edit, which checks resumed episodes and `greengrad replay`: one command a turn."""
    visible_tests: str = ""
    """A command that runs the visible tests before each action, in the agent's machine and on its time (pipeline/probe.py); "": none."""
    prefix: PrefixConfig | None = None
    """Read by `train`; None: every episode starts at its task's beginning."""
    continuations: int = Field(0, ge=0)
    """Episodes that go on from each turn's state, on forks of its machine, to the end and a grade, for credit.kind vine: an episode of N
    turns costs N times as many more. Running processes are not forked. They have as many machines of their own as sandbox.concurrency."""
    infra_retries: int = Field(2, ge=0)
    infra_stop: int = Field(8, ge=1)
    """Episodes in a row without a verdict (INFRA, after all retries) that stop the run."""

    @property
    def rounds(self) -> int:
        """The most rounds of a step."""
        return 1 if self.fill_groups is None else self.fill_rounds

    @model_validator(mode="after")
    def _refuse_what_cannot_fill(self) -> Self:
        if self.fill_groups is None and self.fill_rounds != type(self).model_fields["fill_rounds"].default:
            raise ValueError("rollout.fill_rounds is read only with rollout.fill_groups")
        if self.fill_groups is None and self.fill_short != "train":
            raise ValueError("rollout.fill_short is read only with rollout.fill_groups")
        if self.fill_groups is not None and self.fill_groups > self.fill_rounds * self.tasks_per_step:
            most = f"{self.fill_rounds} rounds of {self.tasks_per_step} tasks"
            raise ValueError(f"rollout.fill_groups = {self.fill_groups} is more than rollout.fill_rounds can bring: {most}")
        return self


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


class TelemetryConfig(Section):
    """What is told of a run while it goes on; metrics.jsonl is always written (docs/METRICS.md)."""

    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Copies of the metrics for other tools (pipeline/sinks.py); the package of each must be installed."""
    peak_tflops: float | None = Field(None, gt=0)
    """Of all the learner's devices, for the FLOPs utilisation; None: from a table of GPUs, measured on a CPU (pipeline/peak.py)."""


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
    reward: RewardConfig = RewardConfig()
    train: TrainConfig = TrainConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    planning: PlanningConfig = PlanningConfig()
    user: UserConfig | None = None
    rft: RftConfig | None = None
    hindsight: HindsightConfig | None = None
    """Given, advantages come from what followed each turn, and `credit` is not read."""
    srl: SrlConfig | None = None
    """Given, `greengrad train` takes srl.steps from an expert's actions first, and then train.steps of reinforcement."""
    simulator: SimulatorConfig | None = None
    """Given, `greengrad train` trains the simulated user of interactive episodes instead of an agent."""
    placement: Placement = Placement()

    @model_validator(mode="after")
    def _refuse_what_a_simulator_does_not_read(self) -> Self:
        refuse_unread(self)
        return self

    @model_validator(mode="after")
    def _demand_what_credit_reads(self) -> Self:
        """A scheme whose inputs are not recorded is an error here, never zeros later; so is a held-out task that is trained on."""
        if self.train.eval_every and self.train.eval_split == self.tasks.split:
            raise ValueError(f"train.eval_split: {self.train.eval_split} is what tasks.split trains on; choose another")
        if self.credit.kind == "gigpo" and not self.rollout.anchors:
            raise ValueError("credit.kind gigpo needs the working tree's hash: set rollout.anchors: true")
        if self.credit.kind == "vine" and not self.rollout.continuations:
            raise ValueError("credit.kind vine needs the value of each turn's state: set rollout.continuations")
        if (self.credit.kind == "potential" or self.credit.turn_reward == "tests") and not self.rollout.visible_tests:
            what = "kind potential" if self.credit.kind == "potential" else "turn_reward tests"
            raise ValueError(f"credit.{what} needs a run of the visible tests: set rollout.visible_tests to a command")
        if self.reward.kind == "visible_tests" and not self.rollout.visible_tests:
            raise ValueError("reward.kind visible_tests needs a run of them: set rollout.visible_tests to a command")
        if self.reward.kind != "hidden_tests" and self.rollout.continuations:
            raise ValueError(f"rollout.continuations end in verdicts of the hidden tests, not in reward.kind {self.reward.kind}")
        if self.user is not None and (self.rollout.continuations or self.rollout.prefix):
            raise ValueError("user: nobody looks for drift in rollout.continuations, or in the dialogues of rollout.prefix; leave one out")
        if self.train.max_lag and self.loss.old_logprobs == "learner" and self.loss.correction_level == "off":
            raise ValueError(
                f"train.max_lag = {self.train.max_lag} trains on tokens of older weights, and nothing corrects for that: set "
                "loss.old_logprobs: engine (the ratio is to the weights that sampled), or a loss.correction_level (decoupled PPO)"
            )
        if self.srl is not None and self.user is not None:
            raise ValueError(
                "srl shows what an expert saw and has nobody to ask: make a run of it without user, then one with, from RUN/srl/model"
            )
        if self.srl is not None and self.rft is not None and self.rft.episodes is not None:
            raise ValueError("srl and rft.episodes are two stages: make a run of each, the second from the first one's RUN/model")
        if self.hindsight is not None and self.planning.emphasis != "off":
            raise ValueError("planning.emphasis is not read with hindsight, whose advantages are of each token already")
        if self.policy.in_flight and not self.train.ahead:
            raise ValueError("policy.in_flight is read only where episodes run during a publish: set train.max_lag or train.on_stale")
        if self.credit.draws and self.credit.draw_weights == "unbiased" and self.loss.aggregation != "token":
            raise ValueError("credit.draw_weights unbiased is made for loss.aggregation token; choose that, or draw_weights priority")
        return self

    @model_validator(mode="after")
    def _refuse_what_hindsight_does_not_read(self) -> Self:
        """Each turn has a signal of its own: no group is constant, and what an episode is rewarded for is not looked at."""
        if self.hindsight is None:
            return self
        if self.credit != CreditConfig() or self.reward != RewardConfig():
            raise ValueError("hindsight takes the place of credit and reward: leave those two sections out")
        if self.rollout.fill_groups is not None:
            raise ValueError("rollout.fill_groups looks for groups whose outcomes differ; with hindsight every group carries a signal")
        if self.rft is not None and self.rft.episodes is not None:
            raise ValueError("rft.episodes fine-tunes on demonstrations, where hindsight is not read; leave one out")
        return self

    @model_validator(mode="after")
    def _refuse_to_sleep_while_episodes_run(self) -> Self:
        if self.policy.sleep and self.train.ahead:
            raise ValueError("policy.sleep: an engine that sleeps cannot sample beside the learner: set train.max_lag: 0, on_stale: wait")
        return self

    @model_validator(mode="after")
    def _refuse_adapters_that_cannot_be_published(self) -> Self:
        """A request that waits while weights change still names the adapter that is gone then."""
        if self.learner.lora is None or self.learner.lora.publish == "merged":
            return self
        if self.policy.transfer != "folder":
            raise ValueError(f"learner.lora.publish: adapters go by a folder, policy.transfer {self.policy.transfer} sends all weights")
        if self.train.ahead:
            raise ValueError("learner.lora.publish: adapters need train.max_lag: 0 and train.on_stale: wait; use merged")
        return self

"""How long a step takes and what it needs, by formula; runs nothing, measures nothing.

P_b parameters of the layers, P_h of the head, P both; L layers of width H, key/value width K; c tokens of context.

    forward pass   2 P_b + 4 H L c FLOPs a token, 2 P_h more where it is scored (Kaplan et al., arXiv:2001.08361)
    learn          3 forward passes: 6 P T, attention with it; 4 of the layers with checkpointing: 8 P T (arXiv:2205.05198); 4 of the head,
                   which is computed in chunks and again; 2 instead of 3 with learner.lora. One pass more for pi_old where a step takes
                   several optimiser steps, one for loss.kl_coef. Exchanges of ZeRO overlap with it: 3 e P a micro-batch at stage 3, e P
                   at stage 2, 2 e P an optimiser step below (Rajbhandari et al., arXiv:1910.02054), e bytes a parameter
    decode         a step (bfloat16) for a requests at once: the longer of a (2 P + 4 H L c) FLOPs and 2 P + a 4 K L c bytes read (Pope et
                   al., arXiv:2211.05102), and the hardware's overhead
    prefill        a forward pass over what a turn adds (a group's prompt once), and over the rest as far as the KV cache does not keep it
    rollout        B episodes an engine; a turn is z seconds in its machine, w of prefill, s tokens: where a of them decode an engine ends
                   X(a) = 1 / (w + s step(a) / a) turns/s, and a + z X(a) = B (response time law, Denning & Buzen 1978). Then what the
                   longest episode has more turns than the mean one, alone
    grade          the last episode's grade, and what graders need beyond the rollout; they are as many as machines
    publish        a folder, written once and read once; nccl and ipc: once over network or link
    step           their sum; with train.max_lag the longer of rollout + grade (no one waits for the longest) and learn + publish, on GPUs
    machines       episodes in flight; graders by Little's law: seconds of a grade x grades/s

Left out: the optimiser's own arithmetic, the comparison after a publish, checkpoints, held-out evaluations, starts,
rollout.continuations, retries, episodes that differ beyond the longest.
"""

import math
from dataclasses import dataclass
from typing import assert_never

from .config import Config
from .cost_rollout import Rollout, cost_rollout, takes_turns
from .hardware import Hardware, choose_hardware
from .shape import Shape
from .work import Work, count_tokens, expect_work


@dataclass(frozen=True, slots=True)
class Cost:
    """A step."""

    hardware: Hardware
    work: Work
    rollout: Rollout
    grade: float
    learn: float
    publish: float
    step: float
    graders: float
    computed: float
    """Tokens that go through the learner's layers for gradients."""
    trained: float
    """Of them, with loss."""
    notes: tuple[str, ...]


def estimate_cost(config: Config, shape: Shape) -> Cost:
    """A step of train, seconds and counts; needs a configuration with a model."""
    hardware, work = choose_hardware(config.placement), expect_work(config)
    beside = config.train.ahead > 0 and not takes_turns(config)
    rollout = cost_rollout(config, shape, hardware, work)
    ended = rollout.seconds - (rollout.tail if config.train.ahead else 0.0)
    grading, machines = config.placement.episode.grade_seconds, min(config.sandbox.concurrency, work.episodes)
    grade = max(grading, work.episodes * grading / machines - ended)
    learn = cost_learning(config, shape, hardware, work)
    publish = cost_publish(config, shape, hardware)
    step = max(ended + grade, learn + publish) if beside else ended + grade + learn + publish
    computed, trained = count_tokens(config, work)
    graders = work.episodes / ended * grading
    return Cost(hardware, work, rollout, grade, learn, publish, step, graders, computed, trained, _notes(config, hardware, work))


def learning_flops(config: Config, shape: Shape, computed: float, scored: float, length: float) -> float:
    """Of forward and backward; computed and scored tokens, of episodes of that length."""
    layers = computed * (2 * shape.body + 4 * shape.hidden * shape.layers * length / 2)
    head = 2.0 * scored * shape.head
    passes = 2 if config.learner.lora else 3
    return layers * (passes + config.learner.activation_checkpointing) + head * (passes + 1)


def cost_learning(config: Config, shape: Shape, hardware: Hardware, work: Work) -> float:
    """Seconds of an update."""
    computed, scored = count_tokens(config, work)
    samples = work.trained_groups * config.rollout.group_size
    steps = math.ceil(samples / config.optim.batch_episodes)
    scoring = (steps > 1 and config.loss.old_logprobs == "learner") + (config.loss.kl_coef > 0)
    forward = computed * (2 * shape.body + 2 * shape.hidden * shape.layers * work.length) + 2 * scored * shape.head
    flops = learning_flops(config, shape, computed, scored, work.length) + scoring * forward
    devices = config.learner.ranks if config.placement.gpus_per_node else 1
    moving = (
        _exchanged(config, shape, computed, steps) / 1e9 / (hardware.network_gb_s if config.placement.nodes > 1 else hardware.link_gb_s)
    )
    return max(flops / (devices * hardware.learner_flops), moving if devices > 1 else 0.0)


def _exchanged(config: Config, shape: Shape, computed: float, steps: int) -> float:
    """Bytes that one rank moves in an update."""
    learner = config.learner
    weights = (4 if learner.dtype == "float32" else 2) * shape.parameters
    batches = math.ceil(computed / learner.micro_tokens / learner.groups)
    return weights * {0: 2.0 * steps, 1: 2.0 * steps, 2: float(batches + steps), 3: 3.0 * batches}[learner.zero_stage]


def cost_publish(config: Config, shape: Shape, hardware: Hardware) -> float:
    """Seconds until the engines have new weights."""
    size = (4 if config.policy.dtype == "float32" else 2) * shape.parameters / 1e9
    if config.learner.lora and config.learner.lora.publish == "adapters":
        lora = config.learner.lora
        size *= 4 * shape.hidden * lora.rank * len(lora.targets) * shape.layers / shape.parameters
    match config.policy.transfer:
        case "folder":
            return 2 * size / hardware.storage_gb_s
        case "nccl" if config.placement.nodes > 1:
            return size / hardware.network_gb_s
        case "nccl" | "ipc":
            return size / hardware.link_gb_s
        case _ as never:
            assert_never(never)


def _notes(config: Config, rates: Hardware, work: Work) -> tuple[str, ...]:
    expected = config.placement.episode
    notes = [
        f"{rates.name}: {rates.tflops:g} TFLOP/s x {rates.learner_share:g} in learning, x {rates.engine_share:g} in sampling, memory "
        f"{rates.memory_gb_s:g} GB/s x {rates.memory_share:g}, network {rates.network_gb_s:g}, storage {rates.storage_gb_s:g} GB/s, "
        f"{1e3 * rates.overhead:g} ms more a step of decoding: {rates.source}",
        f"{expected.tool_seconds:g} s in a machine a turn, {expected.grade_seconds:g} s a grade (placement.episode)",
    ]
    if expected.turns is None or expected.observation_tokens is None:
        notes.append(
            f"episodes as long as they may be ({work.turns:g} turns, {work.length:,.0f} tokens): placement.episode.* says what is expected"
        )
    if config.train.ahead and takes_turns(config):
        notes.append("train.max_lag: learner and engine share the processors, so this plan expects no time to be saved by it")
    return tuple(notes)

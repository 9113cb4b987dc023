"""The optimiser's memory while it has nothing to do: fp32 masters and Adam's moments wait in the host's memory between steps.

For learner and engine on the same GPUs (learner.offload_optimizer: between_steps; policy.sleep is the other half): what is left on the
GPU between steps are the weights that are scored with and exported. DeepSpeed's own offload_states takes its FusedAdam alone; ours is
torch's AdamW, so its tensors are moved here. ZeRO 3 only: at 1 and 2 DeepSpeed keeps views of the masters, which would hold their memory.
Knows where DeepSpeed keeps them, and no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .config import LearnerConfig


@contextmanager
def awake(engine: Any, learner: LearnerConfig) -> Iterator[None]:
    """Within, the optimiser's states are on the device."""
    if learner.offload_optimizer == "between_steps":
        move_states(engine, engine.device)
    yield
    put_to_rest(engine, learner)


def put_to_rest(engine: Any, learner: LearnerConfig) -> None:
    """From now on they are in the host's memory, with learner.offload_optimizer: between_steps."""
    if learner.offload_optimizer == "between_steps":
        move_states(engine, "cpu")


def move_states(engine: Any, device: Any) -> int:
    """Move masters and moments; the bytes moved. Always a copy, so that a CPU goes the same way as a GPU."""
    moved = 0
    for tensor in optimizer_states(engine.optimizer):
        tensor.data = tensor.data.to(device, copy=True)
        moved += tensor.numel() * tensor.element_size()
    return moved


def optimizer_states(optimizer: Any) -> Iterator[Any]:
    """This rank's masters, and every moment that AdamW keeps; of ZeRO 3."""
    yield from optimizer.fp32_partitioned_groups_flat
    for state in optimizer.optimizer.state.values():
        yield from (state[name] for name in ("exp_avg", "exp_avg_sq") if name in state)

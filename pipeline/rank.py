"""One rank of the learner: a DeepSpeed engine around the model, in a process of its own (light until it starts).

It obeys the commands of orders.py; the ranks talk gloo on the CPU and nccl on GPUs.

Scaling: DeepSpeed averages over ranks (and over accumulation steps, which is switched off here). The token mean needs the plain sum
of weight x token, so each loss is multiplied by the number of ranks. Learning rate: set by hand before each step, see learning_rate.

Left out so far: weights loaded shard by shard (each rank reads the model).
"""

import math
import os
import resource
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from .checkpoint import load_checkpoint, save_checkpoint
from .config import OptimConfig
from .lora import add_adapters, without_adapters
from .orders import (
    Command,
    Export,
    LearnerSetup,
    Objective,
    Restore,
    Save,
    Score,
    Send,
    StepReport,
    Train,
    TrainReport,
    learning_rate,
    merge_stats,
)
from .packs import MicroBatch
from .rank_export import export_adapters, export_model
from .ranks import Seat, Spot
from .rest import awake, put_to_rest
from .transfer import send
from .weights import Digests


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a rank works with."""

    setup: LearnerSetup
    rank: int
    ranks: int
    engine: Any
    """deepspeed.DeepSpeedEngine around head.Scorer"""
    model: Any
    """The transformers model whose parameters the engine trains."""
    why_alone: str
    """Why each sample has to be computed alone; empty where packs of runs can be."""
    share: Any | None
    """ulysses.Share with learner.sequence_parallel > 1: this rank's place among those that share its sequences."""
    reference: Any | None
    """loss.kl_coef > 0: a second model as it was at the start, frozen and whole on each rank (it is not sharded), else None.
    With learner.lora the model itself is the reference, its adapters silenced."""


def serve_rank(seat: Seat, setup: LearnerSetup) -> None:
    """A rank's life: start the engine, answer commands until the owner closes the pipe. An exception ends it, traceback in its log."""
    shop = open_workshop(seat.spot, setup)
    seat.pipe.send(shop.why_alone)
    while True:
        try:
            command: Command = seat.pipe.recv()
        except EOFError:
            return
        seat.pipe.send(obey(shop, command))


def obey(shop: Workshop, command: Command) -> Any:
    """Carry out one command; the answer goes back to the owner."""
    match command:
        case Train():
            with awake(shop.engine, shop.setup.learner):
                return train(shop, command)
        case Score():
            return [score(shop, pack, command) for pack in command.packs]
        case Export():
            return export_weights(shop, command)
        case Send():
            return send_weights(shop)
        case Save():
            with awake(shop.engine, shop.setup.learner):
                return save_checkpoint(shop.engine, command.folder)
        case Restore():
            with awake(shop.engine, shop.setup.learner):
                return load_checkpoint(shop.engine, command.folder, shop.rank, shop.ranks)
        case _:
            assert_never(command)


def open_workshop(spot: Spot, setup: LearnerSetup) -> Workshop:
    """Join the process group, load the model, wrap it in a DeepSpeed engine."""
    prepare_environment(spot)
    import deepspeed
    import torch

    from .attention import why_not_runs
    from .head import Scorer, Scoring
    from .model import load_model
    from .ulysses import share_sequences

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(spot.local_rank)
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // spot.local_ranks))
    torch.manual_seed(setup.learner.seed)
    limit = timedelta(seconds=setup.command_seconds)  # of one collective: a peer that hangs ends this rank too
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=spot.rendezvous, rank=spot.rank, world_size=spot.ranks, timeout=limit
    )
    # Its shared-memory kernel is for inference; without this line the first start compiles it for a minute or two.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = load_model(setup)
    why_alone = why_not_runs(model)
    if setup.learner.lora:
        add_adapters(model, setup.learner.lora, setup.learner.seed)
    if setup.learner.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train(setup.learner.activation_checkpointing)
    engine, *_ = deepspeed.initialize(
        model=Scorer(model, Scoring(setup.learner.head_chunk, entropy_grad=setup.loss.entropy_coef > 0)),
        optimizer=build_optimizer(model, setup.optim),
        config=deepspeed_config(setup),
    )
    engine.train(setup.learner.activation_checkpointing)
    put_to_rest(engine, setup.learner)
    second = setup.loss.kl_coef and not setup.learner.lora
    reference = Scorer(load_model(setup), Scoring(setup.learner.head_chunk)).eval().to(engine.device) if second else None
    share = share_sequences(model, setup.learner.sequence_parallel) if setup.learner.sequence_parallel > 1 and not why_alone else None
    return Workshop(setup, spot.rank, spot.ranks, engine, model, why_alone, share, reference)


def prepare_environment(spot: Spot) -> None:
    """Variables that DeepSpeed reads at import: no MPI, one interface, its compiled extensions in our cache."""
    cache = Path(os.environ.get("GREENGRAD_HOME") or Path.home() / ".cache" / "greengrad")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / "torch_extensions"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", spot.interface)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; threads that spin starve whatever shares the cores
    os.environ |= {"RANK": str(spot.rank), "LOCAL_RANK": str(spot.local_rank)}
    os.environ |= {"WORLD_SIZE": str(spot.ranks), "LOCAL_SIZE": str(spot.local_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def deepspeed_config(setup: LearnerSetup) -> dict[str, Any]:
    """DeepSpeed's own configuration; small buckets, because its default of 5e8 elements takes 2 GB per buffer."""
    learner = setup.learner
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": setup.optim.grad_clip,
        "bf16": {"enabled": learner.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": learner.zero_stage,
            "reduce_bucket_size": 20_000_000,
            "allgather_bucket_size": 20_000_000,
            "overlap_comm": False,
            "offload_optimizer": {"device": "cpu" if learner.offload_optimizer == "cpu" else "none"},
        },
        "steps_per_print": 1_000_000_000,
    }


def build_optimizer(model: Any, optim: OptimConfig) -> Any:
    """torch AdamW; norms and biases (fewer than two dimensions) do not decay."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=optim.lr, betas=optim.betas, eps=optim.eps)


def train(shop: Workshop, command: Train) -> TrainReport:
    """All optimiser steps of one call."""
    reports = [take_step(shop, packs, command.objective) for packs in command.minibatches]
    return TrainReport(tuple(reports), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def take_step(shop: Workshop, packs: Sequence[MicroBatch], objective: Objective) -> StepReport:
    """One optimiser step: forward and backward of each micro-batch, then clip and update."""
    engine = shop.engine
    lr = learning_rate(engine.global_steps, shop.setup.optim, shop.setup.total_steps)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    stats = []
    for index, pack in enumerate(packs):
        engine.set_gradient_accumulation_boundary(index == len(packs) - 1)
        loss, part = compute_loss(shop, pack, objective)
        if not math.isfinite(part.loss):
            raise FloatingPointError(f"the loss of micro-batch {index} at optimiser step {engine.global_steps} is {part.loss}")
        engine.backward(loss * shop.ranks, scale_wrt_gas=False)
        stats.append(part)
    norm = local_grad_norm(shop) if shop.setup.learner.zero_stage == 0 else None
    engine.step()
    return StepReport(merge_stats(stats), float(engine.get_global_grad_norm() if norm is None else norm), lr)


def compute_loss(shop: Workshop, pack: MicroBatch, objective: Objective) -> tuple[Any, Any]:
    """(loss tensor, LossStats) of one micro-batch."""
    import torch

    from .loss import Tokens, policy_loss, sft_loss

    def put(array_M: np.ndarray | None) -> Any:
        return None if array_M is None else torch.from_numpy(array_M).to(shop.engine.device)

    tokens = Tokens(**{field.name: put(getattr(pack, field.name)) for field in fields(Tokens)})  # the same names in both
    match objective:
        case "policy":
            return policy_loss(*forward(shop, pack, shop.setup.temperature, shop.engine), tokens, shop.setup.loss)
        case "fine_tune":
            return sft_loss(*forward(shop, pack, 1.0, shop.engine), tokens)
        case _:
            assert_never(objective)


def forward(shop: Workshop, pack: MicroBatch, temperature: float, scorer: Any) -> tuple[Any, Any]:
    """Log-probs and entropies of the micro-batch's scored tokens, through the engine or the reference."""
    import torch

    from .head import Layout
    from .ulysses import score_shared

    ids_N, positions_N, sources_M, targets_M = (
        torch.from_numpy(array).to(shop.engine.device) for array in (pack.ids_N, pack.positions_N, pack.sources_M, pack.targets_M)
    )
    layout = Layout(ids_N, positions_N, sources_M, None if shop.why_alone else pack.runs)
    if shop.share is not None:
        return score_shared(scorer, layout, targets_M, temperature, shop.share)
    scores: tuple[Any, Any] = scorer(layout, targets_M, temperature)
    return scores


def score(shop: Workshop, pack: MicroBatch, command: Score) -> np.ndarray:
    """Log-probs of the scored tokens, or entropies there, shape (M,)."""
    import torch

    silenced = without_adapters(shop.model) if command.reference and shop.setup.learner.lora else nullcontext()
    scorer = shop.reference if command.reference and shop.reference else shop.engine
    with torch.no_grad(), silenced:
        logprobs_M, entropy_M = forward(shop, pack, shop.setup.temperature, scorer)
    scores_M: np.ndarray = (entropy_M if command.entropy else logprobs_M).float().cpu().numpy()
    return scores_M


def local_grad_norm(shop: Workshop) -> float:
    """Norm of the reduced gradients; only for ZeRO stage 0, where DeepSpeed clips but does not tell."""
    import torch

    norms = [p.grad.norm() for p in shop.model.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm())


def export_weights(shop: Workshop, command: Export) -> Digests:
    """Write what a model folder, or an adapter's, holds; the digests on rank 0, nothing on others."""
    dtype, gather = shop.setup.export_dtype, shop.setup.learner.zero_stage == 3
    if command.adapters and shop.setup.learner.lora:
        return export_adapters(shop.model, shop.setup.learner.lora, command.folder, dtype, gather=gather)
    return export_model(shop.model, shop.setup.model_folder, command.folder, dtype, gather=gather)


def send_weights(shop: Workshop) -> Digests:
    """The weights into the engine; the digests on rank 0."""
    assert shop.setup.transfer is not None
    return send(
        shop.model,
        shop.setup.model_folder,
        shop.setup.transfer,
        shop.setup.export_dtype,
        shop.rank,
        gather=shop.setup.learner.zero_stage == 3,
    )

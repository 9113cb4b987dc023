"""One rank of the learner: a process (light until it starts) that obeys the commands of orders.py with its workshop's DeepSpeed engine.

Scaling: DeepSpeed averages over ranks (and over accumulation steps, which is switched off here). The token mean needs the plain sum
of weight x token, so each loss is multiplied by the number of ranks. Learning rate: set by hand before each step, see learning_rate.
"""

import math
import resource
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any, assert_never

import numpy as np

from .checkpoint import load_checkpoint, save_checkpoint
from .lora import without_adapters
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
from .ranks import Seat
from .rest import awake
from .transfer import send
from .types import Likeliest, Teacher
from .weights import Digests
from .workshop import Workshop, open_workshop


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
        case "policy" if pack.teacher is not None:
            return taught_loss(shop, pack, pack.teacher, tokens)
        case "policy":
            scores = forward(shop, pack, put(pack.targets_M), shop.setup.temperature, shop.engine)
            return policy_loss(*scores, tokens, shop.setup.loss)
        case "fine_tune":
            return sft_loss(*forward(shop, pack, put(pack.targets_M), 1.0, shop.engine), tokens)
        case _:
            assert_never(objective)


def taught_loss(shop: Workshop, pack: MicroBatch, teacher: Teacher, tokens: Any) -> tuple[Any, Any]:
    """The policy's loss with the teacher's part: of every token the sampled target, and K more, which are read where there is a teacher."""
    import torch

    from .loss import policy_loss, teacher_loss

    places_H, ids_HK, teacher_HK, weights_H = (
        torch.from_numpy(getattr(teacher, field.name)).to(shop.engine.device) for field in fields(teacher)
    )
    sampled_M = torch.from_numpy(pack.targets_M).to(shop.engine.device)
    targets_MJ = sampled_M[:, None].repeat(1, 1 + ids_HK.shape[1])
    targets_MJ[places_H, 1:] = ids_HK
    logprobs_MJ, entropy_M = forward(shop, pack, targets_MJ, shop.setup.temperature, shop.engine)
    loss, stats = policy_loss(logprobs_MJ[:, 0], entropy_M, tokens, shop.setup.loss)
    directive = teacher_loss(logprobs_MJ[places_H, 1:], teacher_HK, weights_H)
    return loss + directive, replace(stats, loss=stats.loss + directive.item(), directive=directive.item())


def forward(shop: Workshop, pack: MicroBatch, targets: Any, temperature: float, scorer: Any) -> tuple[Any, Any]:
    """What the engine's or the reference's head (head.ScoringHead) says of the targets at the micro-batch's scored tokens."""
    import torch

    from .head import Layout
    from .ulysses import score_shared

    ids_N, positions_N, sources_M = (
        torch.from_numpy(array).to(shop.engine.device) for array in (pack.ids_N, pack.positions_N, pack.sources_M)
    )
    layout = Layout(ids_N, positions_N, sources_M, None if shop.why_alone else pack.runs)
    if shop.share is not None:
        return score_shared(scorer, layout, targets, temperature, shop.share)
    scores: tuple[Any, Any] = scorer(layout, targets, temperature)
    return scores


def score(shop: Workshop, pack: MicroBatch, command: Score) -> np.ndarray | Likeliest:
    """Log-probs of the scored tokens, or entropies there, shape (M,); or the likeliest tokens."""
    import torch

    silenced = without_adapters(shop.model) if command.reference and shop.setup.learner.lora else nullcontext()
    scorer = shop.reference if command.reference and shop.reference else shop.engine
    targets = command.likeliest or torch.from_numpy(pack.targets_M).to(shop.engine.device)
    with torch.no_grad(), silenced:
        scores = forward(shop, pack, targets, shop.setup.temperature, scorer)
    if command.likeliest:
        logprobs_MK, ids_MK = scores
        return Likeliest(ids_MK.cpu().numpy(), logprobs_MK.cpu().numpy())
    logprobs_M, entropy_M = scores
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

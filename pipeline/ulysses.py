"""Sequence parallelism: the tokens of one micro-batch over the ranks of a group, by DeepSpeed's Ulysses; knows no objective.

Each rank has an equal part of the tokens; in attention it has all tokens and its part of the heads, after one exchange and before another
(arXiv:2309.14509, in the form of ALST, arXiv:2506.13996). Ulysses drops attention masks, so packed samples would see each other under plain
SDPA. Ours are told apart by runs (attention.py), which it passes on: packs stay packed, and a model that cannot attend in runs is refused.

The scores of all parts are put together before the loss, which each rank of the group then computes whole: GSPO's ratio belongs to a
sequence, wherever its tokens lie. A rank passes the gradient on to its own tokens; DeepSpeed sums the weights' gradients over all ranks.

Left out: DeepSpeed's UlyssesSPDataLoaderAdapter, which cuts the batches of a DataLoader (ours come from the owner, whole, to each rank
of a group), and ALST's tiled MLP and loss (head.py has chunks of its own).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import NAME
from .head import Layout
from .tree import Run


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's place in the group that shares its sequences."""

    group: Any
    """Process group of torch.distributed."""
    rank: int
    ranks: int


def share_sequences(model: Any, ranks: int) -> Share:
    """Form groups of `ranks` neighbours and put Ulysses around the attention in runs; the model must have that attention already."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    groups = UlyssesSPAttentionHF.register_with_transformers(model, NAME, ranks, micro_batch_size=1)
    return Share(groups.get_sequence_parallel_group(), groups.get_sequence_parallel_rank(), ranks)


def score_shared(scorer: Any, layout: Layout, targets: Tensor | int, temperature: float, share: Share) -> tuple[Tensor, Tensor]:
    """What a head.Scorer, or an engine around one, says of a micro-batch's M tokens, which all ranks of the group bring."""
    own, places_P = cut(layout, share)
    one, other = scorer(own, targets if isinstance(targets, int) else targets[places_P], temperature)
    return join(one, places_P, len(layout.sources_M), share), join(other, places_P, len(layout.sources_M), share)


def cut(layout: Layout, share: Share) -> tuple[Layout, Tensor]:
    """This rank's tokens with the runs of all, and which of the M scored tokens are its own, as indices (P,).

    The tokens are made up to a multiple of the ranks by a run of its own, which no other sees and which is not scored.
    """
    assert layout.runs is not None
    count = len(layout.ids_N)
    missing = -count % share.ranks
    start, size = share.rank * (count + missing) // share.ranks, (count + missing) // share.ranks
    mine = slice(start, start + size)
    places_P = torch.nonzero((layout.sources_M >= start) & (layout.sources_M < start + size))[:, 0]
    ids, positions = (F.pad(whole, (0, missing))[mine] for whole in (layout.ids_N, layout.positions_N))
    runs = (*layout.runs, Run(count, count + missing, ())) if missing else layout.runs
    return Layout(ids, positions, layout.sources_M[places_P] - start, runs), places_P


def join(scores_P: Tensor, places_P: Tensor, count: int, share: Share) -> Tensor:
    """The scores of all ranks, shape (M, ...) on each; the gradient of what is made of them, the same on each, goes to each one's own."""
    joined: Tensor = _Join.apply(scores_P, places_P, count, share)  # type: ignore[no-untyped-call]
    return joined


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_P: Tensor, places_P: Tensor, count: int, share: Share) -> Tensor:
        ctx.save_for_backward(places_P)
        scores_M = scores_P.new_zeros(count, *scores_P.shape[1:])
        scores_M[places_P] = scores_P
        torch.distributed.all_reduce(scores_M, group=share.group)
        return scores_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        (places_P,) = ctx.saved_tensors
        return grad_M[places_P], None, None, None

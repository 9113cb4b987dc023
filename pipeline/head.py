"""Hidden states -> log-probs and entropies of chosen tokens, without the logits in memory; plain torch, knows no objective.

Shapes: N tokens, D hidden size, V vocabulary, M scored tokens (the others never meet the head), J targets of each, K likeliest of each.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tree import Run


@dataclass(frozen=True, slots=True)
class Scoring:
    """How tokens are scored."""

    chunk: int
    """Tokens whose logits exist at one time."""
    temperature: float = 1.0
    entropy_grad: bool = False
    """The entropy passes a gradient on; it costs one more array of logits in the backward pass."""


def score_tokens(hidden_MD: Tensor, weight_VD: Tensor, targets: Tensor, how: Scoring) -> tuple[Tensor, Tensor]:
    """log p of each target, shape (M,) or (M, J), under softmax(hidden @ weight.T / temperature), and the entropy, (M,); both float32.

    Logits exist for `chunk` tokens at a time and are computed again in the backward pass. One autograd node for all chunks gives
    the weight its gradient once: a tied or accumulated weight stays exact, and DeepSpeed's hooks fire once.
    """
    targets_MJ = targets if targets.ndim == 2 else targets[:, None]
    scores: tuple[Tensor, Tensor] = _ScoreTokens.apply(hidden_MD, weight_VD, targets_MJ, how)  # type: ignore[no-untyped-call]
    return scores[0].view_as(targets), scores[1]


@torch.no_grad()
def find_likeliest(hidden_MD: Tensor, weight_VD: Tensor, count: int, how: Scoring) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens, at most all, from the likeliest: log p, float32, and id; both (M, K), without a gradient."""
    parts = [_likeliest(_logits(hidden_MD[part], weight_VD, how.temperature), count) for part in _chunks(max(len(hidden_MD), 1), how.chunk)]
    logprobs, ids = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(ids)


def _likeliest(logits_CV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    top_CK, ids_CK = logits_CV.topk(min(count, logits_CV.shape[-1]))
    return top_CK - torch.logsumexp(logits_CV, dim=-1, keepdim=True), ids_CK


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_MJ: Tensor, how: Scoring) -> tuple[Tensor, Tensor]:
        logprobs_MJ = torch.empty_like(targets_MJ, dtype=torch.float32)
        norm_M, entropy_M = (logprobs_MJ.new_empty(len(targets_MJ)) for _ in range(2))
        for part in _chunks(len(targets_MJ), how.chunk):
            logits_CV = _logits(hidden_MD[part], weight_VD, how.temperature)
            norm_M[part] = torch.logsumexp(logits_CV, dim=-1)
            logprobs_MJ[part] = logits_CV.gather(-1, targets_MJ[part]) - norm_M[part, None]
            probs_CV = torch.exp(logits_CV - norm_M[part, None])
            entropy_M[part] = norm_M[part] - torch.linalg.vecdot(probs_CV, logits_CV)
        ctx.save_for_backward(hidden_MD, weight_VD, targets_MJ, norm_M, entropy_M)
        ctx.how = how
        ctx.set_materialize_grads(False)
        if not how.entropy_grad:
            ctx.mark_non_differentiable(entropy_M)
        return logprobs_MJ, entropy_M

    @staticmethod
    def backward(ctx: Any, grad_MJ: Tensor | None, grad_entropy_M: Tensor | None) -> tuple[Tensor | None, ...]:
        """Chunk by chunk; the weight's gradient is summed in float32, and left out where it is frozen."""
        hidden_MD, weight_VD, targets_MJ, norm_M, entropy_M = ctx.saved_tensors
        how: Scoring = ctx.how
        grad_MJ = torch.zeros_like(targets_MJ, dtype=torch.float32) if grad_MJ is None else grad_MJ
        grad_hidden_MD = torch.empty_like(hidden_MD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(targets_MJ), how.chunk):
            logp_CV = _logits(hidden_MD[part], weight_VD, how.temperature).sub_(norm_M[part, None])
            entropy = None if grad_entropy_M is None else (entropy_M[part, None], grad_entropy_M[part, None] / how.temperature)
            grad_CV = _logits_grad(logp_CV, targets_MJ[part], grad_MJ[part] / how.temperature, entropy).to(weight_VD.dtype)
            grad_hidden_MD[part] = grad_CV @ weight_VD
            if grad_weight_VD is not None:
                grad_weight_VD += grad_CV.t() @ hidden_MD[part]
        return grad_hidden_MD, None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype), None, None


def _logits_grad(logp_CV: Tensor, targets_CJ: Tensor, scale_CJ: Tensor, entropy: tuple[Tensor, Tensor] | None) -> Tensor:
    """sum over J of scale (one-hot - p), and for the entropy H with its own scale -p (log p + H); takes logp_CV's memory."""
    scale_C1 = scale_CJ.sum(dim=-1, keepdim=True)
    if entropy is None:
        grad_CV = logp_CV.exp_().mul_(-scale_C1)
    else:
        entropy_C1, entropy_scale_C1 = entropy
        probs_CV = logp_CV.exp()
        grad_CV = logp_CV.add_(entropy_C1).mul_(-entropy_scale_C1).sub_(scale_C1).mul_(probs_CV)
    return grad_CV.scatter_add_(-1, targets_CJ, scale_CJ)


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    """float32, in memory of its own."""
    logits_CV = F.linear(hidden_CD, weight_VD).float()
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tokens of one forward pass (packs.MicroBatch), on the device."""

    ids_N: Tensor
    positions_N: Tensor
    sources_M: Tensor
    runs: tuple[Run, ...] | None


class ScoringHead(nn.Module):
    """The vocabulary head, as one module that scores tokens in chunks.

    All chunks run inside one forward call: under ZeRO-3 the weight is gathered once, and ranks with different numbers of
    chunks stay in step (a gather per chunk would hang them).
    """

    def __init__(self, weight_VD: nn.Parameter, how: Scoring) -> None:
        super().__init__()
        self.weight = weight_VD
        self.how = how

    def forward(self, hidden_MD: Tensor, targets: Tensor | int, temperature: float) -> tuple[Tensor, Tensor]:
        """See score_tokens, and find_likeliest where `targets` is a number."""
        how = replace(self.how, temperature=temperature)
        if isinstance(targets, int):
            return find_likeliest(hidden_MD, self.weight, targets, how)
        return score_tokens(hidden_MD, self.weight, targets, how)


class Scorer(nn.Module):
    """A causal language model whose output is the log-probs of chosen tokens instead of logits."""

    def __init__(self, model: Any, how: Scoring) -> None:
        """`model` is a transformers causal language model (untyped), whose parameters are shared, not copied."""
        super().__init__()
        head = model.get_output_embeddings()
        if head.bias is not None:
            raise ValueError("a vocabulary head with a bias is not covered")
        self.body: nn.Module = model.base_model
        self.head = ScoringHead(head.weight, how)

    def forward(self, layout: Layout, targets: Tensor | int, temperature: float) -> tuple[Tensor, Tensor]:
        """What ScoringHead says of the targets, each predicted by the hidden state of its source."""
        runs = {"runs": layout.runs} if layout.runs else {}  # else the model's own attention, over one sample
        body = self.body(input_ids=layout.ids_N[None], position_ids=layout.positions_N[None], use_cache=False, **runs)
        scores: tuple[Tensor, Tensor] = self.head(body.last_hidden_state[0][layout.sources_M], targets, temperature)
        return scores

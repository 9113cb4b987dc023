"""Log-probs, advantages and weights of tokens -> loss and metrics, in plain torch; knows nothing of DeepSpeed, batches or files.

The objective is modified DAPO (arXiv:2508.03501; DAPO: arXiv:2503.14476): asymmetric clip, a mean over all sampled tokens of the
batch, no KL term, no reference model, no entropy bonus. The caller gives each token its weight (1 / all tokens of the batch), so the loss
is a sum that may be split over micro-batches, ranks and accumulation steps without changing it.

Left out so far: GSPO, CISPO, dual clip, KL, sequence-level correction.
Shapes: B rows, T positions, D hidden size, V vocabulary, M scored tokens (those with mask = 1; the others never meet the head).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import LossConfig
from .orders import LossStats


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the objective needs of each scored token, shape (M,) each."""

    engine_M: Tensor
    """log p under the engine that sampled it"""
    old_M: Tensor | None
    """log pi_old; None = the current weights: the ratio is exactly 1, with its gradient"""
    advantages_M: Tensor
    weights_M: Tensor
    """sum to 1 over the whole optimiser step; 0 for padding rows"""


def policy_loss(logprobs_M: Tensor, entropy_M: Tensor, tokens: Tokens, config: LossConfig) -> tuple[Tensor, LossStats]:
    """- sum_k w_k c_k min(rho_k A_k, clip(rho_k, 1 - eps_low, 1 + eps_high) A_k), rho = exp(log pi - log pi_old).

    c = 1, or min(pi_old / pi_engine, cap), detached, with correction "truncate" (TIS): it corrects for an engine whose
    log-probs differ from the learner's. Trap: with a temperature other than 1 both sides must be taken at that temperature.
    """
    old_M = logprobs_M.detach() if tokens.old_M is None else tokens.old_M
    ratio_M = torch.exp(logprobs_M - old_M)
    clipped_M = ratio_M.clamp(1 - config.eps_low, 1 + config.eps_high)
    correction_M = torch.ones_like(old_M)
    if config.correction == "truncate":
        correction_M = torch.exp(old_M - tokens.engine_M).clamp(max=config.correction_cap)
    gain_M = torch.minimum(ratio_M * tokens.advantages_M, clipped_M * tokens.advantages_M)
    loss = -(tokens.weights_M * correction_M * gain_M).sum()
    live_M = tokens.weights_M > 0
    delta_M = (old_M - tokens.engine_M).abs() * live_M
    stats = LossStats(
        loss=loss.item(),
        clip_low=_mean(tokens, (ratio_M < 1 - config.eps_low) & (tokens.advantages_M < 0)),
        clip_high=_mean(tokens, (ratio_M > 1 + config.eps_high) & (tokens.advantages_M > 0)),
        ratio_mean=_mean(tokens, ratio_M),
        delta_mean=_mean(tokens, delta_M),
        correction_mean=_mean(tokens, correction_M),
        entropy=_mean(tokens, entropy_M),
        ratio_max=(ratio_M * live_M).max().item(),
        delta_max=delta_M.max().item(),
    )
    return loss, stats


def sft_loss(logprobs_M: Tensor, entropy_M: Tensor, tokens: Tokens) -> tuple[Tensor, LossStats]:
    """- sum_k w_k log pi_k: cross-entropy on the scored tokens."""
    loss = -(tokens.weights_M * logprobs_M).sum()
    return loss, LossStats(loss=loss.item(), entropy=_mean(tokens, entropy_M))


def _mean(tokens: Tokens, value_M: Tensor) -> float:
    return (tokens.weights_M * value_M.detach()).sum().item()


def score_tokens(hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
    """log p of each target under softmax(hidden @ weight.T / temperature), and the entropy (no gradient); both float32, shape (M,).

    Logits exist for `chunk` tokens at a time and are computed again in the backward pass. One autograd node for all chunks gives
    the weight its gradient once: a tied or accumulated weight stays exact, and DeepSpeed's hooks fire once.
    """
    scores: tuple[Tensor, Tensor] = _ScoreTokens.apply(hidden_MD, weight_VD, targets_M, temperature, chunk)  # type: ignore[no-untyped-call]
    return scores


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        norm_M, logprobs_M, entropy_M = (torch.empty_like(targets_M, dtype=torch.float32) for _ in range(3))
        for part in _chunks(len(targets_M), chunk):
            logits_CV = _logits(hidden_MD[part], weight_VD, temperature)
            norm_M[part] = torch.logsumexp(logits_CV, dim=-1)
            logprobs_M[part] = logits_CV.gather(-1, targets_M[part, None]).squeeze(-1) - norm_M[part]
            probs_CV = torch.exp(logits_CV - norm_M[part, None])
            entropy_M[part] = norm_M[part] - torch.linalg.vecdot(probs_CV, logits_CV)
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M, norm_M)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_M)
        return logprobs_M, entropy_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """d log p / d logits = (one-hot - p) / temperature, chunk by chunk; the weight's gradient is summed in float32."""
        hidden_MD, weight_VD, targets_M, norm_M = ctx.saved_tensors
        grad_hidden_MD = torch.empty_like(hidden_MD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for part in _chunks(len(targets_M), ctx.chunk):
            scale_C1 = grad_M[part, None] / ctx.temperature
            grad_CV = _logits(hidden_MD[part], weight_VD, ctx.temperature).sub_(norm_M[part, None]).exp_().mul_(-scale_C1)
            grad_CV.scatter_add_(-1, targets_M[part, None], scale_C1)
            grad_CV = grad_CV.to(weight_VD.dtype)
            grad_hidden_MD[part] = grad_CV @ weight_VD
            grad_weight_VD += grad_CV.t() @ hidden_MD[part]
        return grad_hidden_MD, grad_weight_VD.to(weight_VD.dtype), None, None, None


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    """float32, in memory of its own."""
    logits_CV = F.linear(hidden_CD, weight_VD).float()
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


class ScoringHead(nn.Module):
    """The vocabulary head, as one module that scores tokens in chunks.

    All chunks run inside one forward call: under ZeRO-3 the weight is gathered once, and ranks with different numbers of
    chunks stay in step (a gather per chunk would hang them).
    """

    def __init__(self, weight_VD: nn.Parameter, chunk: int) -> None:
        super().__init__()
        self.weight = weight_VD
        self.chunk = chunk

    def forward(self, hidden_MD: Tensor, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See score_tokens."""
        return score_tokens(hidden_MD, self.weight, targets_M, temperature, self.chunk)


class Scorer(nn.Module):
    """A causal language model whose output is the log-probs of chosen tokens instead of logits.

    Rows are padded on the right: causal attention keeps padding out of sight of real tokens, so no mask is passed.
    """

    def __init__(self, model: Any, chunk: int) -> None:
        """`model` is a transformers causal language model (untyped), whose parameters are shared, not copied."""
        super().__init__()
        head = model.get_output_embeddings()
        if head.bias is not None:
            raise ValueError("a vocabulary head with a bias is not covered")
        self.body: nn.Module = model.base_model
        self.head = ScoringHead(head.weight, chunk)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """(log-probs, entropy), shape (M,), of the tokens where mask_BT is True, in row-major order; column 0 must be False."""
        positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        hidden_BTD = self.body(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).last_hidden_state
        scores: tuple[Tensor, Tensor] = self.head(hidden_BTD[:, :-1][mask_BT[:, 1:]], ids_BT[mask_BT], temperature)
        return scores

"""Log-probs, advantages and weights of tokens -> loss and metrics, in plain torch; knows nothing of DeepSpeed, batches or files.

The default is modified DAPO (arXiv:2508.03501; DAPO: arXiv:2503.14476): asymmetric clip of each token's ratio, a mean over all sampled
tokens of the batch, no KL term, no reference model, no entropy bonus, no correction. The others: GSPO (arXiv:2507.18071), CISPO
(arXiv:2506.13585), dual clip (arXiv:1912.09729).

The caller gives each token its weight (1 / all tokens of the batch), so the loss is a sum that may be split over micro-batches, ranks and
accumulation steps without changing it. A ratio of a whole sequence is a sum over its tokens before that: all scored tokens of a sequence
are in one call (one row of one micro-batch, see batch.py). A sequence is one sample: an episode whose history was rewritten, or that is
trained turn by turn, is several.

Three policies: pi (the gradient), pi_old (the learner before the first minibatch), pi_engine (that sampled). The clip is on pi / pi_old,
the correction on pi_old / pi_engine: with tokens of older weights this is decoupled PPO (arXiv:2110.00641), pi_old the proximal policy.

Left out: sequence-level KL (a token's effect on the KL of later tokens), adaptive KL coefficients.
Shapes: M scored tokens (those with mask = 1), B sequences, H tokens with a teacher, K bins.
"""

from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from .config import LossConfig
from .orders import LossStats

TOP_FROM = 0.7
"""Quantile of the entropy from which a token is in the highest 30 % (arXiv:2509.03646 looks at those)."""

TAIL = 1e-6
"""Smallest probability of the bin for everything outside of the K: below it 1 - sum p is rounding of float32."""


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
    sequences_M: Tensor
    """int64: the number of the sequence that the token belongs to, from 0; all scored tokens of a sequence are here"""
    reference_M: Tensor | None = None
    """log p under the reference model; only where kl_coef > 0"""
    planning_M: Tensor | None = None
    """bool: part of a strategic gram; for the metrics alone"""


def policy_loss(logprobs_M: Tensor, entropy_M: Tensor, tokens: Tokens, config: LossConfig) -> tuple[Tensor, LossStats]:
    """- sum_k w_k (c_k gain_k - kl_coef KL_k + entropy_coef H_k); c: importance_weights, gain: clipped_gain, KL: divergence.

    KL and entropy are not corrected: where c masks a token they still hold. Trap: with a temperature other than 1 all log-probs
    must be taken at that temperature.
    """
    old_M = logprobs_M.detach() if tokens.old_M is None else tokens.old_M
    log_ratio_M = logprobs_M - old_M
    ratio_M = policy_ratio(log_ratio_M, tokens.sequences_M, config)
    raw_M = importance_weights(old_M - tokens.engine_M, tokens.sequences_M, config)
    correction_M = bound_weights(raw_M, config)
    loss = -(tokens.weights_M * correction_M * clipped_gain(logprobs_M, ratio_M, tokens.advantages_M, config)).sum()
    kl: float | None = None
    if config.kl_coef:
        kl_M = divergence(logprobs_M, log_ratio_M, tokens, config)
        loss = loss + config.kl_coef * (tokens.weights_M * kl_M).sum()
        kl = _mean(tokens, kl_M)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * (tokens.weights_M * require_gradient(entropy_M)).sum()
    stats = LossStats(loss=loss.item(), kl=kl, entropy=_mean(tokens, entropy_M))
    stats = replace(stats, correction_mean=_mean(tokens, correction_M), correction_cut=_mean(tokens, correction_M != raw_M))
    return loss, measure_ratios(measure_planning(stats, logprobs_M, entropy_M, tokens), ratio_M, old_M, tokens, config)


def teacher_loss(logprobs_HK: Tensor, teacher_HK: Tensor, weights_H: Tensor) -> Tensor:
    """sum_h w_h KL(pi || teacher) at tokens with a teacher, the top-K form of OpenClaw-RL's directive term (arXiv:2603.10165).

    On-policy and at K = vocabulary its gradient is that of the sampled form A = log pi_teacher - log pi, averaged over the sampled token,
    as long as the hint does not depend on that token; a hint that only follows a wrong one pushes less here the rarer it is.
    Not corrected for tokens of older weights.
    """
    return (weights_H * reverse_kl(logprobs_HK, teacher_HK)).sum()


def reverse_kl(student_HK: Tensor, teacher_HK: Tensor) -> Tensor:
    """KL(student || teacher) over K bins and one for everything else, shape (H,), in nats; the student's gradient passes.

    Given are the log-probs of the same K tokens under both. The last bin's is log(1 - exp(logsumexp)). It is a lower bound of the
    whole divergence, and equal to it at K = vocabulary.
    """
    student, teacher = (torch.cat([logp_HK, _log_rest(logp_HK)], dim=-1) for logp_HK in (student_HK, teacher_HK))
    return (torch.exp(student) * (student - teacher)).sum(dim=-1)


def _log_rest(logp_HK: Tensor) -> Tensor:
    """log of what K bins leave of 1, not below log TAIL, shape (H, 1)."""
    return torch.log((1.0 - torch.exp(logp_HK).sum(dim=-1, keepdim=True)).clamp(min=TAIL))


def measure_planning(stats: LossStats, logprobs_M: Tensor, entropy_M: Tensor, tokens: Tokens) -> LossStats:
    """The same stats with those of planning tokens and of the others."""
    live_M = tokens.weights_M > 0
    planning_M = torch.zeros_like(live_M) if tokens.planning_M is None else tokens.planning_M
    floor = torch.quantile(entropy_M.detach()[live_M].float(), TOP_FROM) if bool(live_M.any()) else 0.0
    return replace(
        stats,
        surprise=_mean(tokens, -logprobs_M),
        planning=_mean(tokens, planning_M),
        execution=_mean(tokens, ~planning_M),
        planning_entropy=_mean(tokens, planning_M * entropy_M),
        planning_surprise=_mean(tokens, planning_M * -logprobs_M),
        planning_top=_mean(tokens, planning_M & (entropy_M >= floor)),
    )


def measure_ratios(stats: LossStats, ratio_M: Tensor, old_M: Tensor, tokens: Tokens, config: LossConfig) -> LossStats:
    """The same stats with those of pi / pi_old and of pi_old against the engine; rows of weight 0 leave no trace."""
    low_M, high_M, dual_M = find_clipped(ratio_M, tokens.advantages_M, config)
    live_M = tokens.weights_M > 0
    gap_M = torch.where(live_M, old_M - tokens.engine_M, 0.0)
    delta_M = gap_M.abs()
    return replace(
        stats,
        clip_low=_mean(tokens, low_M),
        clip_high=_mean(tokens, high_M),
        clip_dual=_mean(tokens, dual_M),
        ratio_mean=_mean(tokens, ratio_M),
        delta_mean=_mean(tokens, delta_M),
        delta_k3=_mean(tokens, torch.expm1(gap_M) - gap_M),
        ratio_max=(ratio_M * live_M).max().item(),
        delta_max=delta_M.max().item(),
    )


def sft_loss(logprobs_M: Tensor, entropy_M: Tensor, tokens: Tokens) -> tuple[Tensor, LossStats]:
    """- sum_k w_k log pi_k: cross-entropy on the scored tokens."""
    loss = -(tokens.weights_M * logprobs_M).sum()
    return loss, LossStats(loss=loss.item(), entropy=_mean(tokens, entropy_M))


def policy_ratio(log_ratio_M: Tensor, sequences_M: Tensor, config: LossConfig) -> Tensor:
    """rho = pi / pi_old of each token; for gspo exp(mean log rho) of its sequence, whose gradient goes to the token alone.

    That is GSPO-token: the value, and with one advantage in a sequence the gradient as well, are GSPO's; with an advantage for each
    turn, each turn keeps its own.
    """
    match config.kind:
        case "dapo" | "cispo":
            return torch.exp(log_ratio_M)
        case "gspo":
            mean_M = sequence_sums(log_ratio_M.detach(), sequences_M) / sequence_sums(torch.ones_like(log_ratio_M), sequences_M)
            return torch.exp(mean_M + log_ratio_M - log_ratio_M.detach())
        case _:
            assert_never(config.kind)


def clipped_gain(logprobs_M: Tensor, ratio_M: Tensor, advantages_M: Tensor, config: LossConfig) -> Tensor:
    """dapo, gspo: min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A), with dual_clip at least dual_clip A where A < 0.

    cispo: clip(rho) A log pi, the clipped ratio detached: a token outside the clip keeps a gradient, with a bounded weight.
    """
    clipped_M = ratio_M.clamp(1 - config.eps_low, 1 + config.eps_high)
    match config.kind:
        case "dapo" | "gspo":
            gain_M = torch.minimum(ratio_M * advantages_M, clipped_M * advantages_M)
            if config.dual_clip is None:
                return gain_M
            return torch.where(advantages_M < 0, torch.maximum(gain_M, config.dual_clip * advantages_M), gain_M)
        case "cispo":
            return clipped_M.detach() * advantages_M * logprobs_M
        case _:
            assert_never(config.kind)


def find_clipped(ratio_M: Tensor, advantages_M: Tensor, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens the lower, the upper and the dual bound hold (cispo: whose weight is clipped, at either sign of A)."""
    low_M, high_M = ratio_M < 1 - config.eps_low, ratio_M > 1 + config.eps_high
    negative_M = advantages_M < 0
    if config.kind == "cispo":
        return low_M, high_M, torch.zeros_like(negative_M)
    dual_M = torch.zeros_like(negative_M) if config.dual_clip is None else negative_M & (ratio_M > config.dual_clip)
    return low_M & negative_M, high_M & (advantages_M > 0), dual_M


def importance_weights(delta_M: Tensor, sequences_M: Tensor, config: LossConfig) -> Tensor:
    """pi_old / pi_engine from delta = log pi_old - log pi_engine: of the token, its sequence's product, or its geometric mean; detached.

    token is biased and bounded for long episodes; sequence is the unbiased one, and its product is cut for every long episode;
    geometric does not depend on the length, and is a measure of how far off a sequence is rather than a weight: use it to mask.
    """
    match config.correction_level:
        case "off":
            return torch.ones_like(delta_M)
        case "token":
            return torch.exp(delta_M.detach())
        case "sequence":
            return torch.exp(sequence_sums(delta_M.detach(), sequences_M))
        case "geometric":
            return torch.exp(sequence_sums(delta_M.detach(), sequences_M) / sequence_sums(torch.ones_like(delta_M), sequences_M))
        case _:
            assert_never(config.correction_level)


def bound_weights(weights_M: Tensor, config: LossConfig) -> Tensor:
    """truncate: at most the cap. mask: as it is within [floor, cap], else 0; the other tokens' weights do not grow for it."""
    match config.correction_mode:
        case _ if config.correction_level == "off":
            return weights_M
        case "truncate":
            return weights_M.clamp(max=config.correction_cap)
        case "mask":
            inside_M = (weights_M >= config.correction_floor) & (weights_M <= config.correction_cap)
            return torch.where(inside_M, weights_M, 0.0)
        case _:
            assert_never(config.correction_mode)


def divergence(logprobs_M: Tensor, log_ratio_M: Tensor, tokens: Tokens, config: LossConfig) -> Tensor:
    """An estimate of KL(pi || pi_ref) at each sampled token, d = log pi - log pi_ref.

    k1: rho d, differentiated through rho = pi / pi_old alone: value and gradient are unbiased (as a loss, d itself has the expected
    gradient 0). k2: d^2 / 2: on-policy the gradient is unbiased (the same as k1's), the value is not. k3: exp(-d) - 1 + d: on-policy the
    value is unbiased, the gradient is that of KL(pi_ref || pi), the other divergence. Not covered: off-policy, k2 and k3 have no weight.
    """
    if tokens.reference_M is None:
        raise ValueError("loss.kl_coef > 0 needs the log-probs of the reference model")
    gap_M = logprobs_M - tokens.reference_M
    match config.kl_estimator:
        case "k1":
            return torch.exp(log_ratio_M) * gap_M.detach()
        case "k2":
            return gap_M**2 / 2
        case "k3":
            return torch.expm1(-gap_M) + gap_M
        case _:
            assert_never(config.kl_estimator)


def require_gradient(entropy_M: Tensor) -> Tensor:
    """The entropy as it is; an error where a bonus for it would silently do nothing."""
    if torch.is_grad_enabled() and not entropy_M.requires_grad:
        raise ValueError("loss.entropy_coef > 0 needs an entropy with a gradient: Scoring(entropy_grad=True)")
    return entropy_M


def sequence_sums(value_M: Tensor, sequences_M: Tensor) -> Tensor:
    """The sum over each token's sequence, shape (M,)."""
    sums_B = value_M.new_zeros(int(sequences_M.max()) + 1 if len(sequences_M) else 0)
    return sums_B.index_add(0, sequences_M, value_M)[sequences_M]


def _mean(tokens: Tokens, value_M: Tensor) -> float:
    return (tokens.weights_M * value_M.detach()).sum().item()

"""Causal attention over a pack of runs (tree.py), registered with transformers; knows nothing of models beyond its attention signature.

A run's queries see the run's past and, causally, the run itself. Each run is one call of a kernel, so what is computed is what the
flat form computes for it, and a token that several samples share is computed once.

On CPUs in bfloat16 torch's own kernel (2.13) does not use the processor's bfloat16 units; plain matrix products in blocks of queries do.
They keep the probabilities for the backward pass, which is affordable up to a few thousand tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .tree import Run

BLOCK = 256
"""Queries per block; the keys to the right of a block are never touched."""

NAME = "greengrad_runs"


def register_attention() -> str:
    """Make it known to transformers; returns the name for attn_implementation."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend_in_runs)
    return NAME


def why_not_runs(model: Any) -> str:
    """Why a transformers model cannot attend in runs; empty where it can."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"its layers are of the kinds {', '.join(sorted(kinds))}, and only full attention is covered"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return ""


def attend_in_runs(
    _module: Any,
    query_BHND: Tensor,
    key_BKND: Tensor,
    value_BKND: Tensor,
    _mask: Tensor | None,
    scaling: float,
    *,
    runs: Sequence[Run],
    **_unused: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling over each token's own past) v, shape (1, N, H, D); H query heads share K key heads."""
    attend = attend_in_blocks if query_BHND.dtype is torch.bfloat16 and query_BHND.device.type == "cpu" else attend_at_once
    parts = []
    for run in runs:
        key, value = (
            torch.cat([states[:, :, start:stop] for start, stop in (*run.past, (run.start, run.stop))], dim=2)
            if run.past
            else states[:, :, run.start : run.stop]
            for states in (key_BKND, value_BKND)
        )
        parts.append(attend(query_BHND[:, :, run.start : run.stop], key, value, scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def attend_at_once(query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, scaling: float) -> Tensor:
    """The last T of S tokens attend causally: torch's own kernel. Shape (B, H, T, D)."""
    length, seen = query_BHTD.shape[2], key_BKSD.shape[2]
    if length == seen:
        return F.scaled_dot_product_attention(query_BHTD, key_BKSD, value_BKSD, is_causal=True, scale=scaling, enable_gqa=True)
    from torch.nn.attention.bias import causal_lower_right

    mask = causal_lower_right(length, seen)
    return F.scaled_dot_product_attention(query_BHTD, key_BKSD, value_BKSD, attn_mask=mask, scale=scaling, enable_gqa=True)


def attend_in_blocks(query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, scaling: float) -> Tensor:
    """The same by matrix products, BLOCK queries at a time."""
    batch, heads, length, size = query_BHTD.shape
    groups, before = key_BKSD.shape[1], key_BKSD.shape[2] - length
    query = (query_BHTD * scaling).reshape(batch, groups, heads // groups, length, size)
    key, value = key_BKSD[:, :, None], value_BKSD[:, :, None]
    blocks = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = query[:, :, :, start:end] @ key[:, :, :, : before + end].transpose(-1, -2)
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=scores.device).triu(1)
        scores[..., before + start :].masked_fill_(future, float("-inf"))
        blocks.append(torch.softmax(scores, dim=-1) @ value[:, :, :, : before + end])
    return torch.cat(blocks, dim=3).view(batch, heads, length, size)

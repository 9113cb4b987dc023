"""Causal attention in blocks of queries, for bfloat16 on CPUs; knows nothing of models beyond transformers' attention signature.

torch's own CPU kernel (2.13) does not use the processor's bfloat16 units, plain matrix products do: a forward and backward pass at
600 tokens takes half the time, values are equal within bfloat16 rounding. It keeps the probabilities (T * T / 2 per head) for the
backward pass, which is affordable up to a few thousand tokens. Right-padded rows only: no mask is read.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Queries per block; the keys to the right of a block are never touched."""

NAME = "greengrad_blocked"


def register_attention() -> str:
    """Make it known to transformers; returns the name for attn_implementation."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend_in_blocks)
    return NAME


def attend_in_blocks(
    _module: Any, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, _mask: Tensor | None, scaling: float, **_unused: Any
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling, keys up to the query) v, shape (B, T, H, D); H query heads share K key heads."""
    batch, heads, length, size = query_BHTD.shape
    groups = key_BKTD.shape[1]
    query = (query_BHTD * scaling).view(batch, groups, heads // groups, length, size)
    key, value = key_BKTD[:, :, None], value_BKTD[:, :, None]
    blocks = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = query[:, :, :, start:end] @ key[:, :, :, :end].transpose(-1, -2)
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=scores.device).triu(1)
        scores[..., start:].masked_fill_(future, float("-inf"))
        blocks.append(torch.softmax(scores, dim=-1) @ value[:, :, :, :end])
    return torch.cat(blocks, dim=3).view(batch, heads, length, size).transpose(1, 2), None

"""A model folder's config.json: what it says of length, heads and experts, and whether a learner can do with it; knows no torch.

YaRN (arXiv:2309.00071) is set here for both sides: the learner gives these entries to transformers, the engine gives them to vLLM.
Covered: dense models with rotary positions. Not covered: a mixture of experts (engine and learner would have to route a token alike, by
replay of the engine's choice or a frozen router, and neither is here), YaRN on positions that are stretched in another way already.
"""

import json
from collections.abc import Mapping
from pathlib import Path

Entries = Mapping[str, object]
"""Of a config.json."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""How model families call the number of experts of a layer."""


def read_entries(folder: Path) -> Entries:
    """config.json; FileNotFoundError where there is none."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model.path: {folder} holds no config.json; a model folder on disk is needed")
    entries: Entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return entries


def refuse_experts(entries: Entries) -> None:
    """ValueError for a mixture of experts: engine and learner may route a token differently, and then the ratio is of two models."""
    inner = entries.get("text_config")
    for part in (entries, inner if isinstance(inner, Mapping) else {}):
        for key in EXPERTS:
            count = part.get(key)
            if isinstance(count, int) and count > 1:
                raise ValueError(
                    f"model.path: config.json has {key} = {count}: training a mixture of experts is not covered "
                    "(no routing replay, no frozen router); use a dense model"
                )


def refuse_heads(entries: Entries, ranks: int) -> None:
    """ValueError where `ranks` of sequence parallelism cannot share out the heads: each has as many queries; keys may be repeated."""
    heads = entries.get("num_attention_heads")
    keys = entries.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(keys, int) or heads % ranks or (keys % ranks and ranks % keys):
        raise ValueError(
            f"learner.sequence_parallel = {ranks} does not divide the model's {heads} query heads, or neither divides nor is a multiple of "
            f"its {keys} key heads"
        )


def stretch(folder: Path, factor: float) -> dict[str, object]:
    """The entries of a model folder's config.json that change for `factor` times the context; none for 1."""
    return {} if factor == 1.0 else yarn_overrides(read_entries(folder), factor)


def yarn_overrides(entries: Entries, factor: float) -> dict[str, object]:
    """The entries that stretch the model's own length by `factor`; the same again for a folder that has them already, as an export has."""
    rope = _rope_of(entries)
    kind = rope.pop("type", rope.get("rope_type", "default"))  # "type": before transformers 4.43
    if kind not in ("default", "yarn"):
        raise ValueError(f"model.rope_yarn: config.json has positions of rope_type {kind}; YaRN on top of that is not covered")
    length = entries.get("max_position_embeddings")
    length = rope.get("original_max_position_embeddings", length) if kind == "yarn" else length
    if not isinstance(length, int):
        raise ValueError("model.rope_yarn: config.json has no max_position_embeddings to stretch")
    stretched = rope | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    return {"rope_parameters": stretched, "max_position_embeddings": int(length * factor)}


def _rope_of(entries: Entries) -> dict[str, object]:
    """rope_parameters as transformers 5 writes them, put together from the older entries where need be."""
    found = entries.get("rope_parameters") or {"rope_theta": entries.get("rope_theta", 10_000.0), **_mapping(entries.get("rope_scaling"))}
    rope = _mapping(found)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError("model.rope_yarn: config.json has rope_parameters for each kind of layer, which is not covered")
    return dict(rope)


def _mapping(found: object) -> Mapping[str, object]:
    if found is not None and not isinstance(found, Mapping):
        raise ValueError("config.json: rope_parameters are not as transformers writes them")
    return found or {}

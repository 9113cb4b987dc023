"""Adapters of low rank (peft's LoRA): added to a model, silenced for the reference, merged for an export; knows no engine, no objective."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config_learner import LoraConfig

NAME = "default"
"""peft's name of the one adapter that a layer has."""


def check_targets(folder: Path, lora: LoraConfig) -> None:
    """ValueError where a name in learner.lora.targets is of no weight in the model folder: peft would only miss it where all are."""
    layers = {name.split(".")[-2] for file in folder.glob("*.safetensors") for name in weight_names(file) if name.endswith(".weight")}
    if unknown := [target for target in lora.targets if target not in layers]:
        raise ValueError(f"learner.lora.targets: no layer {unknown[0]!r} in {folder}; it has {', '.join(sorted(layers))}")


def weight_names(file: Path) -> list[str]:
    """What a safetensors file holds, from its header: 8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def add_adapters(model: Any, lora: LoraConfig, seed: int) -> None:
    """Freeze all weights and put adapters beside the targets; the same ones for the same seed, and at first they add nothing."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    # PeftConfig says alpha is an int, and only ever divides it by the rank.
    adapters = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(adapters, model)
    for name, layer in adapted_layers(model):
        if not isinstance(layer.base_layer, torch.nn.Linear):
            raise ValueError(f"learner.lora.targets: {name} is no linear layer")


def adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, peft's layer around the frozen one)."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Within, the model is as it was at the start: adapters still run, times zero, so that ZeRO-3 meets the modules in the same order."""
    scales = [(layer.scaling, layer.scaling[NAME]) for _, layer in adapted_layers(model)]
    for scaling, _ in scales:
        scaling[NAME] = 0.0
    try:
        yield
    finally:
        for scaling, scale in scales:
            scaling[NAME] = scale


def whole_weights(model: Any) -> Iterator[tuple[str, tuple[Any, ...], float]]:
    """Each weight under the name that it has without adapters, its parts (W,) or (W, B, A), and the scale of B A."""
    adapted = dict(adapted_layers(model))
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".base_layer.")
        if owner and kind == "weight":
            layer = adapted[owner]
            yield f"{owner}.weight", (parameter, layer.lora_B[NAME].weight, layer.lora_A[NAME].weight), layer.scaling[NAME]
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), (parameter,), 0.0


def merge(parts: tuple[Any, ...], scale: float) -> Any:
    """W, or W + scale B A in float32."""
    weight, *low_rank = (part.detach() for part in parts)
    if not low_rank:
        return weight
    return weight.float() + scale * (low_rank[0].float() @ low_rank[1].float())

"""Adapters of low rank (peft's LoRA): added to a model, silenced for the reference, merged for an export; knows no engine, no objective."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config_learner import LoraConfig
from .weights import read_layout

ADAPTER_FILE = "adapter_model.safetensors"
"""peft's name of the file."""
NAME = "default"
"""peft's name of the one adapter that a layer has."""


def check_targets(folder: Path, lora: LoraConfig) -> None:
    """ValueError where a name in learner.lora.targets is of no weight in the model folder: peft would only miss it where all are."""
    layers = {name.split(".")[-2] for name in read_layout(folder) if name.endswith(".weight")}
    if unknown := [target for target in lora.targets if target not in layers]:
        raise ValueError(f"learner.lora.targets: no layer {unknown[0]!r} in {folder}; it has {', '.join(sorted(layers))}")


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


def adapter_weights(model: Any) -> Iterator[tuple[str, Any, float]]:
    """(name, weight, what the engine multiplies it by) of each adapter's A (rank, in) and B (out, rank)."""
    for name, layer in adapted_layers(model):
        yield f"{name}.lora_A.weight", layer.lora_A[NAME].weight, 1.0
        yield f"{name}.lora_B.weight", layer.lora_B[NAME].weight, layer.scaling[NAME]


def save_adapters(folder: Path, state: Mapping[str, Any], lora: LoraConfig) -> None:
    """A folder that peft and vLLM load beside the model."""
    from peft import LoraConfig as PeftConfig
    from safetensors.torch import save_file

    adapters = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), task_type="CAUSAL_LM")
    adapters.save_pretrained(str(folder))
    save_file({f"base_model.model.{name}": weight for name, weight in state.items()}, folder / ADAPTER_FILE)


def merge(parts: tuple[Any, ...], scale: float) -> Any:
    """W, or W + scale B A in float32."""
    weight, *low_rank = (part.detach() for part in parts)
    if not low_rank:
        return weight
    return weight.float() + scale * (low_rank[0].float() @ low_rank[1].float())

"""A rank's weights -> a folder that transformers, peft and vLLM load, and the digests of what an engine must hold then.

All ranks call these together, because under ZeRO-3 (`gather`) each weight is put together from all of them, one at a time. Rank 0 writes.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config_learner import LoraConfig
from .lora import adapter_weights, merge, save_adapters, whole_weights
from .weights import Digests, digest


def export_model(model: Any, base: Path, folder: Path, dtype: str, *, gather: bool) -> Digests:
    """config.json, the tokenizer of `base`, and safetensors in `dtype`, adapters merged."""
    state = {}
    for name, parts, scale in whole_weights(model):
        with gathered(parts, gather) as first:
            if first:
                state[name] = to_host(merge(parts, scale), dtype)
    if not state:
        return {}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = dtype  # save_pretrained notes the dtype of the model in memory
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for source in base.iterdir():
        if source.is_file() and source.suffix not in {".safetensors", ".bin", ".pt"} and not (folder / source.name).exists():
            shutil.copy2(source, folder / source.name)
    return {name: digest(weight) for name, weight in (state | tied_head(model, state)).items()}


def export_adapters(model: Any, lora: LoraConfig, folder: Path, dtype: str, *, gather: bool) -> Digests:
    """What peft saves: the adapters alone. The engine multiplies B by its scale when it loads it, and so do the digests."""
    state, digests = {}, {}
    for name, parameter, scale in adapter_weights(model):
        with gathered((parameter,), gather) as first:
            if first:
                state[name] = to_host(parameter.detach(), dtype)
                digests[name] = digest(state[name] * scale if scale != 1.0 else state[name])
    if state:
        save_adapters(folder, state, lora)
    return digests


@contextmanager
def gathered(parts: tuple[Any, ...], gather: bool) -> Iterator[bool]:
    """Within, the parts are whole on rank 0; tells whether this is rank 0."""
    import deepspeed
    import torch

    with deepspeed.zero.GatheredParameters(list(parts), enabled=gather):
        yield torch.distributed.get_rank() == 0


def to_host(weight: Any, dtype: str) -> Any:
    """A copy in the host's memory."""
    import torch

    return weight.to("cpu", getattr(torch, dtype), copy=True)


def tied_head(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """The head under its own name where it is the embedding: a file has it once, an engine must hold it twice."""
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    embedding = next((name for name in state if name.endswith("embed_tokens.weight")), "")
    return {"lm_head.weight": state[embedding]} if same and embedding else {}

"""What runs inside vLLM's worker: new weights in, and which weights its layers multiply by; knows nothing of requests.

vLLM's own /weight_checker hashes parameters. On a CPU nearly all of them are empty: a linear layer keeps a packed copy, which no
reload of a tied head renews. So a layer is asked for its weight by the only way that it answers, a product: with the unit matrix.
"""

from collections.abc import Iterator
from typing import Any

from .weights import digest


class WeightLoader:
    """Mixed into vLLM's worker (--worker-extension-cls); `self` is the worker."""

    def load_folder(self, folder: str) -> None:
        """Reload all weights from a safetensors folder."""
        worker: Any = self
        worker.reload_weights(weights_path=folder)

    def renew_heads(self) -> None:
        """vLLM's reload packs each layer that it is given a weight for; a head that is tied to the embedding is not among them, and would
        go on with the old weights. So heads are packed again here. On a GPU there are no packed copies and this does nothing."""
        worker: Any = self
        for name, module in worker.get_model().named_modules():
            if name.rpartition(".")[2] == "lm_head" and hasattr(module, "quant_method"):
                module.quant_method.process_weights_after_loading(module)

    def digest_weights(self) -> dict[str, str]:
        """The digest of each weight that the model holds, under the name that it has in the safetensors; the same on each rank."""
        worker: Any = self
        dtype = worker.model_config.dtype
        return {name: digest(weight.to(dtype)) for name, weight in held_weights(worker.get_model())}

    def digest_adapters(self) -> dict[str, str]:
        """The same of the one adapter that is loaded: A, and B with its scale multiplied in."""
        worker: Any = self
        manager = worker.model_runner.lora_manager._adapter_manager
        (adapter,) = manager._registered_adapters.values()
        return {name: digest(weight) for name, weight in held_adapters(worker.get_model(), adapter.rank)}


def held_adapters(model: Any, rank: int) -> Iterator[tuple[str, Any]]:
    """(name as peft has it, weight) of the adapter in the first slot, where not all of it is 0; of one rank's engine alone."""
    for path, module in model.named_modules():
        stacks = zip(getattr(module, "lora_a_stacked", ()), getattr(module, "lora_b_stacked", ()), strict=True)
        before, _, last = path.rpartition(".")
        names = getattr(model, "packed_modules_mapping", {}).get(last, [last])
        for name, (a_stack, b_stack) in zip(names, stacks, strict=False):
            if a_stack[0].any():
                yield f"{before}.{name}.lora_A.weight", a_stack[0, 0, :rank]
                yield f"{before}.{name}.lora_B.weight", b_stack[0, 0, :, :rank]


def held_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """(name in the safetensors, whole weight). vLLM fuses some (q, k and v) and cuts most into shards, one for each rank."""
    for path, module in model.named_modules():
        path = path.replace(".base_layer", "")
        for kind, parameter in module.named_parameters(recurse=False):
            if ".lora_" not in f"{path}.{kind}" and not kind.startswith("lora_"):
                weight = unpack(module) if kind == "weight" and is_packed(path, module) else parameter.data
                for name, part, copies in split(model, path, module, weight):
                    yield f"{name}.{kind}", gather(part, module, kind, copies)


def is_packed(path: str, module: Any) -> bool:
    """Whether products are made with another copy than the parameter (vLLM's CPU layers); lookups never are."""
    return hasattr(module, "cpu_linear") and (module.weight.numel() == 0 or path.rpartition(".")[2] == "lm_head")


def unpack(module: Any) -> Any:
    """The weight (N, K) of a packed layer: its product with the unit matrix, which is exact."""
    import torch

    width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    return module.cpu_linear(torch.eye(width, dtype=module.weight.dtype), module.weight, None).T


def split(model: Any, path: str, module: Any, weight: Any) -> Iterator[tuple[str, Any, int]]:
    """(path in the safetensors, this rank's part, ranks that hold the same part) of what vLLM keeps as one."""
    before, _, last = path.rpartition(".")
    names = getattr(model, "packed_modules_mapping", {}).get(last)
    if names is None or len(names) != len(module.output_partition_sizes):
        yield path, weight, 1
        return
    for index, (name, part) in enumerate(zip(names, weight.split(module.output_partition_sizes), strict=True)):
        yield f"{before}.{name}", part, getattr(module, "num_kv_head_replicas", 1) if index else 1


def gather(part: Any, module: Any, kind: str, copies: int) -> Any:
    """The whole weight from the shards of all ranks."""
    import torch
    from vllm.distributed.parallel_state import get_tp_group
    from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    group = get_tp_group()
    along = 1 if isinstance(module, RowParallelLinear) and kind == "weight" else 0
    if group.world_size > 1 and (along or isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding))):
        shards = group.all_gather(part.contiguous(), along).chunk(group.world_size, along)
        part = torch.cat(shards[::copies], along)
    return part[: module.org_vocab_size] if isinstance(module, VocabParallelEmbedding) else part

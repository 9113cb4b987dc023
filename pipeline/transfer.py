"""Weights straight from the learner's ranks into the engine's, without a folder: vLLM's own transfer, driven from here.

nccl: a broadcast from rank 0, between machines too. ipc: CUDA memory that both map, where learner and engine share GPUs. Both need
GPUs (scripts/gpu_check); on a CPU the folder in shared memory is as fast. Every rank calls `send`, because under ZeRO-3 each
weight is put together from all of them; one weight is whole at a time.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from .lora import merge, whole_weights
from .orders import Transfer
from .rank_export import gathered, tied_head
from .weights import Digests, check_layout, digest

SECONDS = 1800.0
"""Limit of one call to the engine: a model of 72 billion parameters over a slow network."""


def send(model: Any, base: Path, transfer: Transfer, dtype: str, rank: int, *, gather: bool) -> Digests:
    """Pause the engine (policy.load resumes it) and send every weight; the digests on rank 0. A new connection each time:
    setting one up takes milliseconds, and one that outlives an engine's restart would hang.

    ValueError, before anything is sent, where names or shapes are not those of `base`, which the engine was started from.
    """
    from vllm.distributed.weight_transfer import HTTPVLLMWeightSyncClient, WeightTransferTrainerFactory

    client = HTTPVLLMWeightSyncClient(transfer.url, SECONDS)
    source = make_source(model, dtype, gather)
    check_layout(base, {one.name: one.shape for one in source.metadata()})
    if rank == 0:
        pause(transfer.url)
    sender = WeightTransferTrainerFactory.trainer_init(rendezvous(transfer, rank), client=client, source=source)
    try:
        sender.send_weights()
    finally:
        sender.shutdown()
    if rank == 0:
        client.shutdown_weight_transfer_engine()
    return source.digests if rank == 0 else {}


def pause(url: str) -> None:
    """Running requests end, new ones wait."""
    import httpx

    httpx.post(f"{url}/pause", params={"mode": "wait"}, timeout=SECONDS, trust_env=False).raise_for_status()


def rendezvous(transfer: Transfer, rank: int) -> Any:
    """vLLM's description of this end of the connection."""
    match transfer.kind:
        case "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            address, port = own_address(transfer.url)
            return NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=1 + transfer.engine_ranks, rank=rank)
        case "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=rank, packed=True)


def own_address(url: str) -> tuple[str, int]:
    """(the address by which the engine's machine reaches this one, a port that is free now)."""
    parts = urlparse(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: it only asks for the route
        probe.connect((parts.hostname, parts.port))
        address = str(probe.getsockname()[0])
    with socket.socket() as free:
        free.bind((address, 0))
        return address, int(free.getsockname()[1])


def make_source(model: Any, dtype: str, gather: bool) -> Any:
    """The weights as vLLM's sender reads them, adapters merged: names, types and shapes at once, then one weight after the other."""
    import torch
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    wire = getattr(torch, dtype)

    class Source(WeightSource):  # type: ignore[misc]
        """Whole weights, each a copy: what ZeRO-3 gathered is gone after its turn."""

        def __init__(self) -> None:
            self.digests: dict[str, str] = {}

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, wire, tuple(getattr(parts[0], "ds_shape", parts[0].shape))) for name, parts, _ in whole_weights(model)]

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            self.digests = {}
            for name, parts, scale in whole_weights(model):
                with gathered(parts, gather) as first:
                    weight = merge(parts, scale).to(wire, copy=True)
                if first:
                    self.digests[name] = digest(weight)
                yield name, weight
            self.digests |= tied_head(model, self.digests)

    return Source()

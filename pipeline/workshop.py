"""What a rank works with: its place among the ranks, the model and a DeepSpeed engine around it; knows no command and no batch.

The ranks talk gloo on the CPU and nccl on GPUs. Left out so far: weights loaded shard by shard (each rank reads the model).
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from .config import OptimConfig
from .lora import add_adapters
from .orders import LearnerSetup
from .ranks import Spot
from .rest import put_to_rest


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a rank works with."""

    setup: LearnerSetup
    rank: int
    ranks: int
    engine: Any
    """deepspeed.DeepSpeedEngine around head.Scorer"""
    model: Any
    """The transformers model whose parameters the engine trains."""
    why_alone: str
    """Why each sample has to be computed alone; empty where packs of runs can be."""
    share: Any | None
    """ulysses.Share with learner.sequence_parallel > 1: this rank's place among those that share its sequences."""
    reference: Any | None
    """loss.kl_coef > 0: a second model as it was at the start, frozen and whole on each rank (it is not sharded), else None.
    With learner.lora the model itself is the reference, its adapters silenced."""


def open_workshop(spot: Spot, setup: LearnerSetup) -> Workshop:
    """Join the process group, load the model, wrap it in a DeepSpeed engine."""
    prepare_environment(spot)
    import deepspeed

    from .attention import why_not_runs
    from .head import Scorer, Scoring
    from .model import load_model
    from .ulysses import share_sequences

    join_group(spot, setup)
    # Its shared-memory kernel is for inference; without this line the first start compiles it for a minute or two.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = load_model(setup)
    why_alone = why_not_runs(model)
    if setup.learner.lora:
        add_adapters(model, setup.learner.lora, setup.learner.seed)
    if setup.learner.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train(setup.learner.activation_checkpointing)
    engine, *_ = deepspeed.initialize(
        model=Scorer(model, Scoring(setup.learner.head_chunk, entropy_grad=setup.loss.entropy_coef > 0)),
        optimizer=build_optimizer(model, setup.optim),
        config=deepspeed_config(setup),
    )
    engine.train(setup.learner.activation_checkpointing)
    put_to_rest(engine, setup.learner)
    second = setup.loss.kl_coef and not setup.learner.lora
    reference = Scorer(load_model(setup), Scoring(setup.learner.head_chunk)).eval().to(engine.device) if second else None
    share = share_sequences(model, setup.learner.sequence_parallel) if setup.learner.sequence_parallel > 1 and not why_alone else None
    return Workshop(setup, spot.rank, spot.ranks, engine, model, why_alone, share, reference)


def join_group(spot: Spot, setup: LearnerSetup) -> None:
    """This rank's device and its place among the others: nccl on GPUs, gloo on the CPU."""
    import torch

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(spot.local_rank)
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // spot.local_ranks))
    torch.manual_seed(setup.learner.seed)
    limit = timedelta(seconds=setup.command_seconds)  # of one collective: a peer that hangs ends this rank too
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=spot.rendezvous, rank=spot.rank, world_size=spot.ranks, timeout=limit
    )


def prepare_environment(spot: Spot) -> None:
    """Variables that DeepSpeed reads at import: no MPI, one interface, its compiled extensions in our cache."""
    cache = Path(os.environ.get("GREENGRAD_HOME") or Path.home() / ".cache" / "greengrad")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / "torch_extensions"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", spot.interface)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; threads that spin starve whatever shares the cores
    os.environ |= {"RANK": str(spot.rank), "LOCAL_RANK": str(spot.local_rank)}
    os.environ |= {"WORLD_SIZE": str(spot.ranks), "LOCAL_SIZE": str(spot.local_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def deepspeed_config(setup: LearnerSetup) -> dict[str, Any]:
    """DeepSpeed's own configuration; small buckets, because its default of 5e8 elements takes 2 GB per buffer."""
    learner = setup.learner
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": setup.optim.grad_clip,
        "bf16": {"enabled": learner.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": learner.zero_stage,
            "reduce_bucket_size": 20_000_000,
            "allgather_bucket_size": 20_000_000,
            "overlap_comm": False,
            "offload_optimizer": {"device": "cpu" if learner.offload_optimizer == "cpu" else "none"},
        },
        "steps_per_print": 1_000_000_000,
    }


def build_optimizer(model: Any, optim: OptimConfig) -> Any:
    """torch AdamW; norms and biases (fewer than two dimensions) do not decay."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=optim.lr, betas=optim.betas, eps=optim.eps)

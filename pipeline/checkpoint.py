"""A rank's checkpoints: DeepSpeed's own files, and their way to another number of ranks; knows the engine, no model and no samples.

With the same number of ranks each rank reads its own file. For another number rank 0 first turns the files into DeepSpeed's universal
form, one folder a parameter, in a scratch folder beside the checkpoint that is removed afterwards. ZeRO stage 0 needs neither: all its
state is in one file. Left out: another ZeRO stage than the checkpoint's.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

TAG = "state"
"""Name of the folder inside a checkpoint; there is one."""


def save_checkpoint(engine: Any, folder: Path) -> None:
    """Weights, optimiser and step count; every rank writes its part. Frozen weights, which the model folder has, stay out."""
    frozen = [name for name, weight in engine.module.named_parameters(remove_duplicate=False) if not weight.requires_grad]

    def drop(_module: Any, state: dict[str, Any], *_unused: Any) -> None:  # DeepSpeed leaves the second name of a tied weight
        for name in frozen:
            del state[name]

    hook = engine.module.register_state_dict_post_hook(drop)
    engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    hook.remove()


def load_checkpoint(engine: Any, folder: Path, rank: int, ranks: int) -> int:
    """Weights, optimiser and step count, whatever the number of ranks that wrote them; returns the optimiser steps done."""
    parts = len(list((folder / TAG).glob("*_optim_states.pt")))
    if parts in {0, ranks}:
        _load(engine, folder)
    else:
        _load_universal(engine, folder, rank)
    return int(engine.global_steps)


def _load(engine: Any, folder: Path) -> None:
    whole = all(parameter.requires_grad for parameter in engine.module.parameters())
    engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=whole)


def _load_universal(engine: Any, folder: Path, rank: int) -> None:
    import torch

    scratch = folder.with_name(folder.name + ".universal")
    if rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        _convert(folder / TAG, scratch / TAG)
    torch.distributed.barrier()
    settings = [{key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    _load(engine, scratch)
    engine._config.load_universal_checkpoint = False
    _repair_stage_3(engine.optimizer.optimizer, settings)
    torch.distributed.barrier()
    if rank == 0:
        shutil.rmtree(scratch)


def _repair_stage_3(adam: Any, settings: list[dict[str, Any]]) -> None:
    """DeepSpeed 0.19.8 gives every group the settings of the first (norms would decay) and one step counter, which each would raise."""
    for group, own in zip(adam.param_groups, settings, strict=True):
        group.update(own)
    for state in adam.state.values():
        state["step"] = state["step"].clone()


def _convert(source: Path, out: Path) -> None:
    """DeepSpeed's converter, in this process: its workers would be forks of one that holds a process group."""
    from deepspeed.checkpoint import ds_to_universal

    out.mkdir(parents=True)
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(source),
            output_folder=str(out),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )

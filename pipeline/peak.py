"""What the learner's devices could compute in a second: from a table for GPUs, measured for a CPU; knows no torch."""

import logging
import subprocess
import time
from pathlib import Path

import numpy as np

from .config import Config
from .shape import model_shape
from .telemetry import Yardstick

log = logging.getLogger(__name__)

BFLOAT16_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Dense bfloat16 of NVIDIA's data sheets, by a part of the name; the first that fits."""
SIZE = 1024
"""Of the square float32 matrices that measure a CPU: 2 GFLOP a product, 12 MB."""
PRODUCTS = 20
"""About a second; the best of them, because the machine is never quite idle (20 to 46 GFLOP/s were seen with 5 on two busy cores)."""


def make_yardstick(config: Config) -> Yardstick | None:
    """Of this configuration on this machine; None, with a line that says why, where no peak is known."""
    if config.model is None:
        return None
    parameters = model_shape(config.model, config.placement).parameters
    if config.telemetry.peak_tflops is not None:
        return Yardstick(6 * parameters, config.telemetry.peak_tflops * 1e12)
    if not Path("/dev/nvidiactl").exists():
        return Yardstick(6 * parameters, measure_cpu())
    name = gpu_name()
    peak = find_peak(name) if config.learner.dtype == "bfloat16" else None
    if peak is None:
        log.warning("no FLOPs utilisation: no peak is known for %s in %s; telemetry.peak_tflops sets it", name, config.learner.dtype)
        return None
    return Yardstick(6 * parameters, peak * config.learner.ranks)


def find_peak(name: str) -> float | None:
    """FLOP/s in bfloat16 of the GPU of that name; None where it is not in the table."""
    return next((tflops * 1e12 for part, tflops in BFLOAT16_TFLOPS.items() if part in name), None)


def gpu_name() -> str:
    """Of the first GPU, as nvidia-smi calls it."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "a GPU that nvidia-smi does not name"
    return done.stdout.strip().partition("\n")[0] or "a GPU that nvidia-smi does not name"


def measure_cpu() -> float:
    """FLOP/s of this machine's cores together: the best of a few float32 products by numpy's BLAS."""
    matrix = np.ones((SIZE, SIZE), np.float32)
    seconds = []
    for _ in range(PRODUCTS):
        started = time.monotonic()
        np.matmul(matrix, matrix)
        seconds.append(time.monotonic() - started)
    return 2.0 * SIZE**3 / max(min(seconds), 1e-9)

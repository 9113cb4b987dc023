"""What a device can do, from data sheets and from what was measured here; knows no model."""

from dataclasses import dataclass, replace

from .config_placement import Placement


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU, or all processors of a machine that has none."""

    name: str
    tflops: float
    """Peak, 1e12 FLOP/s: dense bfloat16 of a GPU."""
    learner_share: float
    engine_share: float
    memory_gb_s: float
    memory_share: float
    network_gb_s: float
    """To GPUs of other nodes."""
    link_gb_s: float
    """To GPUs of its node."""
    storage_gb_s: float
    overhead: float
    """Seconds of a step of sampling that neither computing nor reading explains: scheduling, launches, exchanges."""
    source: str

    @property
    def learner_flops(self) -> float:
        """FLOP/s in training."""
        return self.tflops * 1e12 * self.learner_share

    @property
    def engine_flops(self) -> float:
        """FLOP/s in sampling."""
        return self.tflops * 1e12 * self.engine_share

    @property
    def memory(self) -> float:
        """Bytes/s in sampling."""
        return self.memory_gb_s * 1e9 * self.memory_share


SHEET = "peaks of data sheets; shares, storage and overhead are assumed (0.4: Llama 3 405B trained at 38 to 43 %, arXiv:2407.21783)"


def _gpu(name: str, tflops: float, memory_gb_s: float, link_gb_s: float) -> Hardware:
    """Network: 400 Gbit/s a GPU."""
    return Hardware(name, tflops, 0.4, 0.4, memory_gb_s, 0.6, 50.0, link_gb_s, 2.0, 0.005, SHEET)


GPUS = {
    "A100": _gpu("A100", 312, 2039, 300),
    "H100": _gpu("H100", 989, 3350, 450),
    "H200": _gpu("H200", 989, 4800, 450),
    "B200": _gpu("B200", 2250, 8000, 900),
}
"""By the value of placement.gpu; links in one direction."""
PROCESSORS = Hardware("2 processors", 0.2, 1.0, 0.45, 20.0, 1.0, 1.0, 1.0, 0.4, 0.0, "measured on 2 cores of an AMD EPYC (docs/LOG.md)")
"""The learner's rate in float32 is the peak here; the engine computes in bfloat16."""


def choose_hardware(placement: Placement) -> Hardware:
    """The defaults of the placement's device, with what the configuration sets."""
    name = placement.gpu if placement.gpu != "auto" else "H200" if placement.gpu_memory_gb >= 140 else "H100"
    found = GPUS[name] if placement.gpus_per_node else PROCESSORS
    keys = ("tflops", "learner_share", "engine_share", "memory_gb_s", "memory_share", "network_gb_s", "storage_gb_s")
    given = {key: getattr(placement, key) for key in keys if getattr(placement, key) is not None}
    return replace(found, **given, source=found.source + (f"; set: {', '.join(given)}" if given else ""))

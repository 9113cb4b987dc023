"""Many machines, for real: a Ray cluster of three local nodes, two learner ranks (gloo, ZeRO-3), one vLLM, two nodes with Docker daemons of
their own; and what happens when a part of it is killed in the middle of a step. Colocated: learner and engine take turns."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from pipeline.journal import Journal, JournalError
from pipeline.ledger import check_run
from tests.daemons import Daemon

REPOSITORY = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "pipeline.cli")
BOUND = 420.0
"""Seconds within which a run with one loss ends."""
CONFIG = """
name: cluster
tasks: {{suite: {folder}/suite, split: train}}
model: {{path: {folder}/learned/model, context: 16384}}
sandbox: {{backend: docker, concurrency: 4, memory_mb: 256, disk_mb: 64}}
rollout: {{tasks_per_step: 2, group_size: 8, max_turns: 10, max_new_tokens: 400, observation_chars: 400}}
learner: {{ranks: 2, zero_stage: 3, micro_tokens: 4096, offload_optimizer: between_steps}}
policy: {{memory_gb: 1, sleep: true}}
optim: {{lr: 1.0e-6}}
train: {{steps: {steps}, save_every: 1}}
"""


class Machines:
    """Three nodes: one that computes, two that play episodes."""

    def __init__(self, folder: Path) -> None:
        self.daemons = [Daemon(folder / name) for name in ("b", "c")]
        for daemon in self.daemons:
            daemon.copy_base()
        small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        nowhere = {"DOCKER_HOST": f"unix://{folder}/none.sock"}
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
        head = {"num_cpus": 3, "env_vars": nowhere, "_system_config": quick, **small}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [
            self.cluster.add_node(num_cpus=0, env_vars={"DOCKER_HOST": daemon.host}, object_store_memory=100 * 2**20)
            for daemon in self.daemons
        ]

    def close(self) -> None:
        """All of it."""
        self.cluster.shutdown()
        for daemon in self.daemons:
            daemon.stop()

    def lose_node(self) -> None:
        """The second node's power: its Ray processes and its Docker daemon."""
        self.daemons[1].kill()
        self.cluster.remove_node(self.nodes[1], allow_graceful=False)


@pytest.fixture
def machines() -> Iterator[Machines]:
    with tempfile.TemporaryDirectory(prefix="gg-") as folder:
        made = Machines(Path(folder))
        yield made
        made.close()


def kill_process(word: str) -> None:
    """SIGKILL to the first process whose command line has the word; not to a guard, which has it too."""
    lines = {one: " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])}
    found = [one for one, line in lines.items() if word in line and "pipeline.guard" not in line]
    assert found, f"no process of {word}"
    found[0].send_signal(signal.SIGKILL)


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def in_step(run: Path, step: int) -> bool:
    """Whether the run is in the middle of a step: episodes have turns and are not finished."""
    try:
        with Journal(run, readonly=True) as journal:
            return journal.next_step >= step and bool(journal.ledger().open_turns)
    except (FileNotFoundError, JournalError):
        return False  # it is being made


def train_and_lose(config: Path, run: Path, address: str, losses: list[Callable[[], None]]) -> str:
    """Train on the cluster; the n-th loss happens in the middle of step n (from 0). What the run said."""
    words = [*COMMAND, "train", str(config), "--run", str(run), "--cluster", address]
    said = run.with_suffix(".log")
    with said.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, cwd=REPOSITORY)
    end = time.monotonic() + BOUND * max(len(losses), 1)
    for step, lose in enumerate(losses):
        while not in_step(run, step):
            assert process.poll() is None and time.monotonic() < end, said.read_text()[-4000:]
            time.sleep(0.05)
        lose()
    try:
        process.wait(end - time.monotonic())
    finally:
        process.kill()
    assert process.returncode == 0, said.read_text()[-4000:]
    return said.read_text()


LOSSES = {
    "a node that plays episodes": lambda machines: machines.lose_node(),
    "the process that plays episodes on a node": lambda machines: kill_process("ray::NodeActor"),
    "a learner rank": lambda machines: kill_process("ray::RankHost"),
    "the vLLM server": lambda machines: kill_process("--served-model-name"),
}
HERE = ["a node that plays episodes", "a learner rank"]


@pytest.mark.docker
@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.parametrize("names", [HERE, pytest.param(list(reversed(LOSSES)), marks=pytest.mark.long)], ids=["short", "all"])
def test_a_run_on_a_cluster_goes_on_by_itself_when_parts_of_it_are_killed_in_mid_step(learned: Path, machines: Machines, names) -> None:
    config, run = learned / f"cluster-{len(names)}.yaml", learned / f"cluster-{len(names)}"
    config.write_text(CONFIG.format(folder=learned, steps=len(names) + 1))
    planned = subprocess.run(
        [*COMMAND, "plan", str(config), "--cluster", machines.cluster.address], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert "rank 0, rank 1, engine 0" in planned.stdout and planned.stdout.count("episodes (docker)") == 2, planned.stdout + planned.stderr
    said = train_and_lose(config, run, machines.cluster.address, [lambda name=name: LOSSES[name](machines) for name in names])
    with Journal(run, readonly=True) as journal:
        steps, episodes = journal.steps(), list(journal.episodes())
    assert list(steps) == list(range(len(names) + 1)), said
    restarts = steps[len(names)]["train/restarts"]  # one more where both nodes are lost
    assert restarts - sum(name in ("a learner rank", "the vLLM server") for name in names) in (0, int(len(names) > 2)), said
    assert all(episode.reward is not None for episode in episodes), "an infrastructure failure was counted as an episode"
    assert len({episode.episode_id for episode in episodes}) == 16 * len(steps)
    assert wait_until(lambda: not machines.daemons[0].containers()), "machines were left on a node"
    assert [fault for ledger in check_run(run) for fault in ledger.faults] == []

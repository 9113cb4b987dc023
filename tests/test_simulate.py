"""The bench scripts that stand behind the plan: the simulation bends where its formulas say, and the check of the plan runs."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    found = importlib.util.spec_from_file_location("simulate", BENCH / "simulate.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["simulate"] = module
    found.loader.exec_module(module)
    return module


def test_a_station_serves_in_the_order_of_asking_as_many_as_it_has_servers(simulation: ModuleType) -> None:
    station = simulation.Station("two", servers=2)
    assert [station.serve(0.0, 3.0), station.serve(1.0, 3.0), station.serve(1.0, 3.0), station.serve(9.0, 1.0)] == [3.0, 4.0, 6.0, 10.0]
    assert station.busy == 10.0


def test_few_episodes_wait_for_nothing(simulation: ModuleType) -> None:
    one = simulation.simulate(simulation.SETUPS[0], 128, scale=1.0)
    assert one.turns_per_second == pytest.approx(one.ideal, rel=0.1)


def test_one_process_ends_no_more_turns_than_its_processor_allows(simulation: ModuleType) -> None:
    """At 0.4 of the recorded latencies 2,000 episodes want 1,290 turns/s."""
    one, nodes = (simulation.simulate(setup, 2000, scale=0.4) for setup in simulation.SETUPS[:2])
    assert one.scarcest == "orchestrator"
    assert one.turns_per_second == pytest.approx(1 / simulation.ORCHESTRATOR, rel=0.02)
    assert nodes.turns_per_second > 1.4 * one.turns_per_second


def test_engines_that_are_too_few_end_what_their_requests_allow(simulation: ModuleType) -> None:
    found = simulation.simulate(simulation.SETUPS[2], 1500, scale=0.5)
    answer = sum(simulation.MODEL_SECONDS) / len(simulation.MODEL_SECONDS) * 0.5
    assert found.scarcest == "engines"
    assert found.turns_per_second == pytest.approx(16 * simulation.REQUESTS / answer, rel=0.1)


def test_the_plan_is_compared_with_what_was_measured() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "plan_check.py")], capture_output=True, text=True, timeout=120, check=True)
    errors = [float(line.split("|")[4].split("%")[0]) for line in done.stdout.splitlines() if line.startswith(("| learn", "| rollout"))]
    assert len(errors) > 10 and sorted(abs(error) for error in errors)[len(errors) // 2] < 25

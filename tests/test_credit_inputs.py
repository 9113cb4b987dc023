"""Where credit's inputs come from: what the configuration demands and refuses, the probe of a machine, Dr.GRPO's token count."""

import subprocess

import numpy as np
import pytest

from pipeline.batch import weigh_samples
from pipeline.config import Config, LossConfig, RolloutConfig
from pipeline.config_io import load_config
from pipeline.probe import HASH, look, read_share
from pipeline.types import Sample
from sandbox import ExecResult, FakeSandbox, SandboxError

TESTS = "python -m pytest -q"


def load(tmp_path, *overrides):
    (tmp_path / "c.yaml").write_text("tasks: {suite: s}\n")
    return load_config(tmp_path / "c.yaml", overrides, Config)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("--credit.kind gigpo", "set rollout.anchors: true"),
        ("--credit.kind potential", "set rollout.visible_tests to a command"),
        ("--credit.kind return_to_go --credit.turn_reward tests", "credit.turn_reward tests needs a run of the visible tests"),
        ("--credit.kind vine", "set rollout.continuations"),
        ("--credit.kind next_turn", "needs a reward per turn"),
        ("--credit.kind mt_grpo", "needs a reward per turn"),
        ("--credit.gamma 0.9", "credit.gamma = 0.9 is not read by credit.kind episode"),
        ("--credit.format_penalty 1", "credit.format_penalty = 1.0 is not read by credit.kind episode"),
        ("--credit.kind potential --credit.turn_weight 2", "credit.turn_weight = 2.0 is not read"),
        ("--credit.kind gigpo --credit.outcome_weight 2", "credit.outcome_weight = 2.0 is not read"),
        ("--credit.kind return_to_go --credit.draws 4", "credit.draws = 4 is not read"),
        ("--credit.draw_seed 4", "read only where credit.draws is given"),
        ("--credit.draws 4 --loss.aggregation group", "loss.aggregation token"),
    ],
)
def test_what_a_scheme_lacks_or_does_not_read_is_one_line_at_the_start(tmp_path, overrides, told):
    with pytest.raises(ValueError) as caught:
        load(tmp_path, *overrides.split())
    assert told in str(caught.value) and "\n" not in str(caught.value) and str(tmp_path / "c.yaml") in str(caught.value)


def test_a_scheme_with_its_inputs_is_accepted(tmp_path):
    words = "--credit.kind gigpo --rollout.anchors true --credit.gamma 0.95 --credit.turn_weight 2 --loss.aggregation constant"
    assert load(tmp_path, *words.split()).credit.turn_weight == 2


# --- the probe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("== 3 passed, 1 failed in 0.1s ==", 0.75),
        ("x\n1 failed, 2 passed, 1 skipped, 1 error in 2s\n", 0.5),
        ("1 error in 0.1s", 0.0),
        ("5 passed in 1s\nwarning: 3 files", 1.0),
        ("no tests ran", None),
        ("", None),
    ],
)
def test_the_share_of_tests_is_read_off_the_last_line_that_counts(text, share):
    assert read_share(text) == share


def test_equal_trees_have_equal_hashes_and_names_modes_links_and_contents_count(tmp_path):
    def digest():
        done = subprocess.run(["bash", "-c", HASH], cwd=tree, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.split()[0]

    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "b c.py").write_text("x = 1")
    found = [digest()]
    (tree / ".git").mkdir()
    (tree / ".git" / "index").write_text("?")
    (tree / "m.pyc").write_text("?")
    assert digest() == found[0]
    (tree / "a" / "b c.py").write_text("x = 2")
    found.append(digest())
    (tree / "a" / "b c.py").chmod(0o755)
    found.append(digest())
    (tree / "link").symlink_to("a")
    found.append(digest())
    (tree / "a" / "b c.py").rename(tree / "d.py")
    found.append(digest())
    assert len(set(found)) == 5


async def test_nothing_is_run_in_the_machine_unless_credit_asks_for_it():
    sandbox = FakeSandbox()
    seen = await look(sandbox, RolloutConfig(), 5, first=True)
    assert (seen.anchor, seen.passed, sandbox.commands) == ("", None, [])
    sandbox = FakeSandbox({"sha256sum": b"abc  -\n", "pytest": b"1 passed, 1 failed in 1s"})
    seen = await look(sandbox, RolloutConfig(anchors=True, visible_tests=TESTS), 5, first=True)
    assert (seen.anchor, seen.passed, sandbox.commands) == ("abc", 0.5, [HASH, TESTS])


async def test_a_command_that_counts_no_tests_in_an_untouched_tree_is_a_mistake_and_later_it_is_the_agent_s_doing():
    sandbox = FakeSandbox({"pytest": b"No module named pytest"})
    rollout = RolloutConfig(visible_tests=TESTS)
    with pytest.raises(ValueError, match="no count of tests in its output: No module named pytest"):
        await look(sandbox, rollout, 5, first=True)
    assert (await look(sandbox, rollout, 5, first=False)).passed == 0.0
    slow = FakeSandbox({"pytest": ExecResult(b"", 124, 5.0, timed_out=True)})
    with pytest.raises(SandboxError, match="took longer than 5 s"):
        await look(slow, rollout, 5, first=True)


def test_a_constant_token_count_takes_the_lengths_out_of_the_loss():
    rows = [(10, "a"), (990, "b")]
    samples = [Sample(name, "g", np.arange(n + 1), np.arange(n + 1) > 0, np.zeros(n + 1), np.ones(n + 1)) for n, name in rows]
    np.testing.assert_allclose(weigh_samples(samples, "constant", 1000), [1 / 2000, 1 / 2000])
    np.testing.assert_allclose(weigh_samples([samples[0]] * 3, "constant", 50), [1 / 50] * 3)  # three samples of one episode
    assert LossConfig(aggregation="constant", constant_tokens=7).constant_tokens == 7


async def test_in_a_real_machine_the_probe_sees_the_tree_and_the_tests_and_kills_nothing(machine):
    rollout = RolloutConfig(anchors=True, visible_tests="python -m pytest -q -p no:cacheprovider")
    await machine.write(
        "/testbed/test_calc.py", b"from calc import add\ndef test_zero(): assert add(1, 0) == 1\ndef test_add(): assert add(1, 1) == 2\n"
    )
    await machine.run("sleep 60 > /tmp/out 2>&1 & echo $! > /tmp/pid")
    first = await look(machine, rollout, 20, first=True)
    again = await look(machine, rollout, 20, first=False)
    await machine.write("/testbed/calc.py", b"def add(a, b):\n    return a + b\n")
    fixed = await look(machine, rollout, 20, first=False)
    assert (first.passed, fixed.passed) == (0.5, 1.0)
    assert first.anchor == again.anchor != fixed.anchor and len(first.anchor) == 64
    assert (await machine.run("kill -0 $(cat /tmp/pid)")).exit_code == 0

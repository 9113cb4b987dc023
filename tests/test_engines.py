"""Two real servers as one policy."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config, ModelConfig, PolicyConfig, TasksConfig
from pipeline.convert import tiny_model
from pipeline.engines import Engines, start_engines
from pipeline.prompt import load_chat
from tests.toy_loop import make_task


@pytest.mark.vllm
async def test_groups_are_dealt_to_the_engines_and_new_weights_reach_both(tmp_path: Path) -> None:
    first, second = tiny_model(tmp_path / "first", seed=0), tiny_model(tmp_path / "second", seed=1)
    config = Config(
        tasks=TasksConfig(suite=Path("none")),
        model=ModelConfig(path=first, context=512),
        policy=PolicyConfig(engines=2, memory_gb=0.2, max_requests=2, dtype="float32"),
    )
    template = load_chat(first).template
    policy = await start_engines(config, template, tmp_path / "vllm.log")
    assert isinstance(policy, Engines)
    try:
        dealt = [policy(make_task(number)) for number in range(4)]
        assert dealt == [policy.members[0], policy.members[1]] * 2
        assert len({member.url for member in policy.members}) == 2
        prompt = template.start("You add numbers.", "What is 1 + 1?")
        before = [await member.score_prompt(prompt) for member in policy.members]
        held = await policy.load(second, 1)
        after = [await member.score_prompt(prompt) for member in policy.members]
        np.testing.assert_array_equal(before[0], before[1])
        np.testing.assert_array_equal(after[0], after[1])
        assert np.abs(after[0] - before[0]).max() > 0.01 and len(held) > 10
        completions = [await member.sample(prompt, 4, seed=1) for member in policy.members]
        assert {completion.version for completion in completions} == {policy.version} == {1}
    finally:
        await policy.close()

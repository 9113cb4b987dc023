"""A model that judges or plays the user: which keys name it, and one that vLLM serves here for as long as it is asked."""

from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from pipeline import engine
from pipeline.config import Config, UserConfig
from pipeline.config_reward import JudgeConfig
from pipeline.convert import tiny_model
from pipeline.jobs import start_run
from pipeline.prompt import ByteTemplate
from pipeline.served import open_server, serve_command
from pipeline.types import ContextFull
from pipeline.user import ModelSpeaker, open_user


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "either url, a running server, or path"),
        ({"url": "http://x", "path": "m"}, "either url, a running server, or path"),
        ({"url": "x:8000"}, "must begin with http://"),
        ({"url": "http://x", "context": 512}, "context is read only with path"),
        ({"url": "http://x", "memory_gb": 3.0}, "memory_gb is read only with path"),
        ({"url": "http://x", "gpu_fraction": 0.5}, "gpu_fraction is read only with path"),
        ({"path": "m", "model": "x"}, "model is read only with url"),
        ({"path": "m", "key_env": "KEY"}, "key_env is read only with url"),
    ],
)
def test_a_model_that_is_asked_has_one_place_and_no_key_that_nothing_reads(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        JudgeConfig.model_validate(keys)


@pytest.mark.parametrize(
    "section",
    [
        {"user": {"kind": "model", "server": {"path": "none"}}},
        {"hindsight": {"judge": {"path": "none"}}},
        {"reward": {"kind": "judge", "judge": {"path": "none"}}},
    ],
)
def test_a_folder_that_is_no_model_is_refused_before_a_run_folder_is_made(tmp_path: Path, section: dict[str, object]) -> None:
    config = Config.model_validate({"tasks": {"suite": tmp_path}, "rollout": {"policy": "noop"}, **section})
    with pytest.raises(FileNotFoundError, match=r"path: none holds no config\.json"):
        start_run(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_number_of_a_configuration_is_infinite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        JudgeConfig(url="http://x", request_seconds=value)


async def test_a_folder_without_a_model_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        async with open_server(JudgeConfig(path=tmp_path), temperature=0.0):
            pass


@pytest.mark.parametrize("gpu", [False, True])
def test_the_server_is_started_with_its_own_context_and_memory(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    monkeypatch.setattr(engine, "has_gpu", lambda: gpu)
    words = serve_command(JudgeConfig(path=Path("m"), context=512, memory_gb=0.5, gpu_fraction=0.1), Path("m"), 1)
    given = dict(pairwise(words))
    assert given["--model"] == "m" and given["--max-model-len"] == "512"
    assert (given.get("--gpu-memory-utilization"), given.get("--kv-cache-memory-bytes")) == (("0.1", None) if gpu else (None, str(2**29)))


@pytest.mark.vllm
async def test_vllm_serves_the_user_s_model_beside_the_run_and_ends_with_it(tmp_path: Path) -> None:
    """The tiny model writes noise: that it can be asked at temperature 0, with the room that it was given, is all that is looked at."""
    settings = UserConfig(kind="model", server=JudgeConfig(path=tiny_model(tmp_path / "m"), context=2048, memory_gb=0.25))
    async with open_user(settings) as user, httpx.AsyncClient(trust_env=False) as client:
        assert user is not None and isinstance(user.speaker, ModelSpeaker)
        server, prompt = user.speaker.server, ByteTemplate().start("You are a user.", "What is it?")
        one, same = [await server.sample(prompt, 8, seed=0) for _ in range(2)]
        assert one.text == same.text and one.tokens_out == 8
        (model,) = (await client.get(f"{server._client.base_url}models")).json()["data"]
        assert model["max_model_len"] == 2048
        with pytest.raises(ContextFull):
            await server.sample(ByteTemplate().start("You", "x " * 3000), 8, seed=0)
    with pytest.raises(httpx.ConnectError):
        httpx.Client(trust_env=False).get(str(server._client.base_url))

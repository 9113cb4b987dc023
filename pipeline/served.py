"""A model that is asked in words, as judge or as user: behind a URL, or served here as long as somebody asks; knows no question."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from .chat_policy import ChatPolicy, start_chat
from .config import Config, ModelConfig, PolicyConfig
from .config_reward import JudgeConfig
from .engine import engine_command, free_port, start_engine


@asynccontextmanager
async def open_server(settings: JudgeConfig, temperature: float) -> AsyncIterator[ChatPolicy]:
    """The server at settings.url, or a vLLM server of settings.path that ends with the block; PolicyError where there is none."""
    async with AsyncExitStack() as stack:
        url = settings.url if settings.url is not None else await stack.enter_async_context(_serve(settings, settings.path))
        server = await start_chat(settings.server(url), temperature)
        stack.push_async_callback(server.close)
        yield server


@asynccontextmanager
async def _serve(settings: JudgeConfig, model: Path | None) -> AsyncIterator[str]:
    """The URL of a server of our own; its log is gone with it, and its last lines are in the error where it does not start."""
    if model is None or not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} holds no config.json: path is the folder of a model that vLLM serves here")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="greengrad-served-") as folder:
        engine = await start_engine(serve_command(settings, model, port), url, Path(folder) / "vllm.log")
        try:
            yield url
        finally:
            await engine.stop()


def serve_command(settings: JudgeConfig, model: Path, port: int) -> list[str]:
    """As the policy's own server is started, with what these settings say."""
    policy = PolicyConfig(memory_gb=settings.memory_gb, gpu_fraction=settings.gpu_fraction)
    return engine_command(ModelConfig(path=model, context=settings.context), policy, port)


def list_served(config: Config) -> dict[str, Path]:
    """Section -> folder of each model that a run would serve here."""
    asked = {
        "user.server": config.user.server if config.user else None,
        "hindsight.judge": config.hindsight.judge if config.hindsight else None,
        "reward.judge": config.reward.judge,
    }
    return {section: one.path for section, one in asked.items() if one is not None and one.path is not None}

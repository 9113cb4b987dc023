"""Remove from a machine what leaks the answer, and prove that it is gone; fails closed; knows no tasks, backends or models.

A history becomes the base commit alone, under its own id: evaluation scripts check it out. What differs from it in the working tree (an
image that was built in its repository) becomes one commit upon it, so that a diff holds only the agent's work. A new .git is filled with
the objects of that one commit; nothing else of the old one is read, neither configuration nor references, and it is not opened by git.
Then the proof (proof.py), in a machine that is new or wiped. Both are done once for a tree and a secret: a sealed tree
lies in the store, and a tree that needed no sealing (make_tree's) has an empty folder there as the sign that it was proved.

covered:     objects that cannot be reached, reflogs, packed references, alternates, remotes, stashes, ORIG_HEAD, FETCH_HEAD, notes, replace
             references, hooks, worktrees, nested repositories; compiled Python, *.orig and *.rej that git does not track.
not covered: repositories with SHA-256 ids, a .git that is a file, partial clones that lack objects of the base: refused. Attributes of the
             repository (eol, filters, LFS) do not act in a sealed tree: files are what the image holds, byte by byte.
"""

import asyncio
import hashlib
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from .base import WORKDIR, Backend, Image, Limits, ResourceExhausted, Sandbox, SandboxError
from .desk import Desk, SealError, open_desk
from .pool import Pool
from .proof import prove_tree, search
from .repo import ATTRIBUTES, COLLECT, CONFIG, WHEN
from .store import home, make_once
from .traces import Secret, Traces

VERSION = "1"
"""Part of every key in the store: raise it when the proof becomes stricter."""
KIND = "sealed"
TREE = "tree.tar"
JOBS = 4
ATTEMPTS = 3
REUSE = 50
"""Trees that one machine sees, wiped in between."""
COPIES = 8
"""Of a tree, for which a machine has room: WORKDIR is half of its disk, and a sealed tree is packed in /tmp."""
LIFE = 1800.0
"""Seconds that sealing and proving one tree may take in all."""
PART = 32 << 20
"""Bytes in which a tree is taken out of a machine."""
_ID = re.compile(r"[0-9a-f]{40}")
T = TypeVar("T")

_REWRITE = f"""
[ -d .git ] && [ ! -L .git ] || {{ echo 'it has no .git folder'; exit 1; }}
old="$PWD/.git/objects"
git init -q --template= --initial-branch=main "$HERE/new"
export GIT_DIR="$HERE/new/.git" GIT_WORK_TREE="$PWD"
mkdir -p "$GIT_DIR/info"
printf %s "$CONFIG" > "$GIT_DIR/config"
printf %s "$ATTRIBUTES" > "$GIT_DIR/info/attributes"
export GIT_ALTERNATE_OBJECT_DIRECTORIES="$old"
[ "$(git cat-file -t "$BASE")" = commit ] || {{ echo "it does not hold the commit $BASE"; exit 1; }}
git cat-file commit "$BASE" | sed -n '/^$/q; /^parent /p' > "$HERE/parents"
[ ! -s "$HERE/parents" ] || echo "$BASE" > "$GIT_DIR/shallow"
git rev-list --objects --no-object-names --max-count=1 "$BASE" > "$HERE/wanted"
git pack-objects -q --threads=1 "$GIT_DIR/objects/pack/pack" < "$HERE/wanted" > /dev/null
unset GIT_ALTERNATE_OBJECT_DIRECTORIES
git update-ref refs/heads/main "$BASE"
rm -rf .git
find . -iname .git -prune -exec rm -rf {{}} +
git read-tree HEAD
git ls-files -z --others -- '*.pyc' '*.pyo' '*.orig' '*.rej' | xargs -0 -r rm -f --
{COLLECT}
tree=$(git write-tree)
if [ "$tree" != "$(git rev-parse 'HEAD^{{tree}}')" ]; then
    git update-ref refs/heads/main "$(git commit-tree -p "$BASE" -m baseline "$tree")"
fi
git -c pack.threads=1 repack -adq
git prune --expire=now
rm "$GIT_DIR/index"
git read-tree HEAD
rm -rf "$GIT_DIR/branches" "$GIT_DIR/hooks" "$GIT_DIR/logs" "$GIT_DIR/COMMIT_EDITMSG" "$GIT_DIR/description" "$GIT_DIR/info/exclude"
mv "$GIT_DIR" .git
"""
_OUT = """
find . -mindepth 1 -printf '%P\\0' | LC_ALL=C sort -z > "$HERE/files"
tar -c --format=gnu --owner=0 --group=0 --numeric-owner --no-recursion --null --files-from="$HERE/files" \\
    | split -b "$PART" -a 4 -d - "$HERE/part."
ls "$HERE" | grep -c '^part[.]' > "$HERE/parts"
"""
_WHO = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in (("NAME", "greengrad"), ("EMAIL", "none"))}
_DATES = {"GIT_AUTHOR_DATE": f"{WHEN} +0000", "GIT_COMMITTER_DATE": f"{WHEN} +0000"}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where it is done."""

    backend: Backend
    machines: Pool
    drafts: Path


@dataclass(frozen=True, slots=True)
class _Shown:
    """A tree of which it is shown that it is sealed."""

    image: Image
    key: str
    """Its place in the store."""
    traces: Traces | None
    """To be looked for in the environment; None where the store says that this was done."""
    draft: Path | None = None
    """The tree where it had to be rewritten."""


async def seal(sandbox: Sandbox, secret: Secret) -> None:
    """Seal WORKDIR of this machine and prove that nothing in it holds the answer. Ends what runs there. SealError where that fails."""
    try:
        await sandbox.kill_all()
        async with open_desk(sandbox) as desk:
            await _rewrite(desk, secret.base_commit)
            found = await search(desk, [await prove_tree(desk, secret)])
    except ResourceExhausted as error:
        raise SealError(f"the machine is too small to be sealed: {error}") from error
    if found[0]:
        raise SealError(found[0])


async def sealed(backend: Backend, image: Image, secret: Secret) -> Image:
    """The image whose machines are sealed and proved: its tree is another one where it had to be rewritten. SealError where it leaks."""
    result = (await seal_all(backend, [(image, secret)]))[0]
    if isinstance(result, SandboxError):
        raise result
    return result


async def seal_all(backend: Backend, wanted: Sequence[tuple[Image, Secret]], jobs: int = JOBS) -> list[Image | SandboxError]:
    """sealed() for many at once: in the same order, each one's image, or why it must not be used. An environment is searched once."""
    with tempfile.TemporaryDirectory(prefix=".sealing-", dir=home()) as drafts:
        async with Pool(backend, Limits(), jobs, reuse=REUSE) as machines:
            place = _Place(backend, machines, Path(drafts))
            shown = await asyncio.gather(*(_caught(partial(_show, place, image, secret)) for image, secret in wanted))
            fresh = {one.key: one for one in shown if isinstance(one, _Shown) and one.traces is not None}
            leaks: dict[str, SandboxError] = {}
            for name in dict.fromkeys(one.image.name for one in fresh.values()):
                leaks |= await _search(place, [one for one in fresh.values() if one.image.name == name])
        for key in fresh.keys() - leaks.keys():
            await asyncio.to_thread(make_once, KIND, key, partial(_keep, fresh[key].draft))
    return [one if isinstance(one, SandboxError) else leaks.get(one.key) or _stored(one) for one in shown]


async def _show(place: _Place, image: Image, secret: Secret) -> _Shown:
    """Prove a tree as it is, or else seal it and prove what came of that. The store spares both."""
    if not _ID.fullmatch(secret.base_commit):
        raise SealError(f"base commit {secret.base_commit!r}: 40 hex digits are needed")
    identity = await place.backend.prepare(image.name)
    image = replace(image, tree=image.tree or await place.backend.own_tree(image))
    key = await asyncio.to_thread(_key, place.backend.name, identity, image, secret)
    if (home() / KIND / key).is_dir():
        return _Shown(image, key, None)
    try:
        return _Shown(image, key, await _in_machine(place, image, lambda desk: prove_tree(desk, secret)))
    except SealError:  # no sealed tree yet
        draft = place.drafts / key
        await _in_machine(place, image, lambda desk: _seal_into(desk, secret.base_commit, draft))
        traces = await _in_machine(place, replace(image, tree=draft), lambda desk: prove_tree(desk, secret))
        return _Shown(image, key, traces, draft)


async def _search(place: _Place, shown: Sequence[_Shown]) -> dict[str, SandboxError]:
    """Look through one environment for the traces of all these; key -> what was found, or why nothing could be shown."""
    traces = [one.traces for one in shown if one.traces is not None]
    found = await _caught(partial(_in_machine, place, shown[0].image, lambda desk: search(desk, traces)))
    if isinstance(found, SandboxError):
        return {one.key: found for one in shown}
    return {one.key: SealError(what) for one, what in zip(shown, found, strict=True) if what}


async def _in_machine(place: _Place, image: Image, work: Callable[[Desk], Awaitable[T]]) -> T:
    """Do something at a desk of a machine as new, with room for several copies of its tree."""
    assert image.tree
    room = COPIES * (image.tree.stat().st_size >> 20)
    try:
        async with place.machines.lease(image, Limits(disk_mb=max(512, room), episode_seconds=LIFE)) as machine, open_desk(machine) as desk:
            return await work(desk)
    except ResourceExhausted as error:
        raise SealError(f"{image.name}: its machine ended while it was sealed: {error}") from error


async def _caught(work: Callable[[], Awaitable[T]]) -> T | SandboxError:
    """The result, or why there is none; a machine that fails is replaced, up to ATTEMPTS in all."""
    again = retry_if_exception(lambda error: isinstance(error, SandboxError) and not isinstance(error, SealError))
    wait = wait_random_exponential(multiplier=0.2, max=5)
    try:
        return await AsyncRetrying(stop=stop_after_attempt(ATTEMPTS), wait=wait, retry=again, reraise=True)(work)
    except SandboxError as error:
        return error


async def _rewrite(desk: Desk, base: str) -> None:
    """Give WORKDIR a new .git that holds this commit alone, and its differences to it as a commit upon it."""
    settings = {"CONFIG": CONFIG, "ATTRIBUTES": ATTRIBUTES, **_WHO, **_DATES}
    await desk.run(_REWRITE, f"{WORKDIR} cannot be sealed", BASE=base, **settings)


async def _seal_into(desk: Desk, base: str, out: Path) -> None:
    """Seal WORKDIR and take it out as a tree file."""
    await _rewrite(desk, base)
    await desk.run(_OUT, "the sealed tree cannot be taken out", PART=str(PART))
    with out.open("wb") as file:
        for number in range(int(await desk.read("parts"))):
            file.write(await desk.read(f"part.{number:04d}"))


def _key(backend: str, identity: str, image: Image, secret: Secret) -> str:
    """What a proof holds for: tree, environment, host's Python (bubblewrap's machines have it), secret, and the rules of the proof."""
    assert image.tree
    with image.tree.open("rb") as file:
        tree = hashlib.file_digest(file, "sha256").hexdigest()
    text = repr((VERSION, backend, identity, sys.version, tree, secret))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _keep(draft: Path | None, folder: Path) -> None:
    """Into the store: the sealed tree, or nothing where the tree was sealed already."""
    if draft is not None:
        draft.rename(folder / TREE)


def _stored(shown: _Shown) -> Image:
    tree = home() / KIND / shown.key / TREE
    return replace(shown.image, tree=tree) if tree.is_file() else shown.image

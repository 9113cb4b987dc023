"""A folder that is there whole or not at all; knows nothing of what is in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, moved to `out` at the end of the block, thrown away where the block fails.

    ValueError where `out` is there and holds anything: nothing is mixed, nothing is overwritten.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is there already and not empty; choose another folder or remove it")
    draft = out.with_name(f"{out.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    os.replace(draft, out)


def file_name(name: str) -> str:
    """An id as a name of one file: the same for a usual id, never a path, different for different ids."""
    quoted = quote(name, safe=" @+=,")
    return quoted.replace(".", "%2E") if quoted.strip(".") == "" else quoted

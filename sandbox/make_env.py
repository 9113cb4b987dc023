"""Makes a virtual environment that holds at /opt/env out of a folder of pure-Python packages; knows nothing of pip or machines.

Standard library only: it runs on the host (bubblewrap) and as a script inside the base image (Docker): make_env.py SITE DRAFT
"""

import compileall
import shutil
import sys
import venv
from pathlib import Path

PLACE = "/opt/env"


def make_env(site: Path, draft: Path) -> None:
    """Fill `draft` with an environment of this Python; `site` is what `pip install --target` wrote."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(draft)
    packages = draft / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    shutil.copytree(site, packages, dirs_exist_ok=True, symlinks=True)
    if (packages / "bin").is_dir():
        shutil.copytree(packages / "bin", draft / "bin", dirs_exist_ok=True)
        shutil.rmtree(packages / "bin")
    for script in (*(draft / "bin").iterdir(), draft / "pyvenv.cfg"):
        if script.is_file() and not script.is_symlink():
            script.write_text(relocate(script.read_text(), draft))
    compileall.compile_dir(packages, quiet=2, stripdir=str(draft), prependdir=PLACE)


def relocate(script: str, draft: Path) -> str:
    """A script's text with its interpreter and its paths at /opt/env."""
    first, newline, rest = script.partition("\n")
    if first.startswith("#!") and "python" in first:
        first = f"#!{PLACE}/bin/python3"
    return (first + newline + rest).replace(str(draft), PLACE)


if __name__ == "__main__":
    make_env(Path(sys.argv[1]), Path(sys.argv[2]))

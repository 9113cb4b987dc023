"""What a task folder runs: eval.sh in the official shape, and a Dockerfile that `docker build` can use; pure text.

eval.sh is read by the official harness too, so everything that makes the tests deterministic and hard to steer from the tree is
in it: no plugins found by entry points, no options of the repository's own, no captured output in the log, one hash seed.
"""

import shlex
from collections.abc import Sequence

from .patches import patch_paths, split_patch
from .swebench import END, START

_HEREDOC = "EOF_114329324912"
"""The official scripts' own end mark."""
PYTEST = "pytest -rA --show-capture=no --tb=short -o addopts= -p no:cacheprovider --rootdir=/testbed"


def pytest_command(sources: Sequence[str], tests: Sequence[str], plugins: Sequence[str] = ()) -> str:
    """The test command: `sources` are folders below /testbed that hold the packages ("." or "src"), `plugins` modules to load."""
    roots = " ".join(f"/testbed/{source}".removesuffix("/.") for source in sources)
    loaded = "".join(f"-p {shlex.quote(plugin)} " for plugin in plugins)
    return f"{PYTEST} {loaded}-o pythonpath={shlex.quote(roots)} {shlex.join(tests)}"


def eval_script(base_commit: str, test_patch: str, command: str) -> str:
    """The evaluation as the official harness runs it, for a test patch that only adds files."""
    files = shlex.join(patch_paths(test_patch))
    return f"""#!/bin/bash
set -uxo pipefail
cd /testbed
git config --global --add safe.directory /testbed
git status
git -c core.fileMode=false diff {base_commit}
rm -rf {files}
git apply -v - <<'{_HEREDOC}'
{test_patch}{_HEREDOC}
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
: '{START}'
{command}
: '{END}'
rm -rf {files}
"""


def apply_script(base_commit: str, test_patch: str, command: str, setup: str = "") -> str:
    """The evaluation for a test patch that changes files as well: those come back from the base commit, new ones are removed first.

    `setup`: commands after `cd /testbed`, each with its newline. `command`: what runs the tests, one or more lines.
    """
    sections = split_patch(test_patch)
    added = [path for section in sections if _is_new(section.text) for path in section.paths]
    changed = [path for section in sections for path in section.paths if path not in added]
    restore = f"git checkout {base_commit} {shlex.join(changed)}\n" if changed else ""
    restore += f"rm -rf {shlex.join(added)}\n" if added else ""
    patch = f"git apply -v - <<'{_HEREDOC}'\n{test_patch}{'' if test_patch.endswith(chr(10)) else chr(10)}{_HEREDOC}\n" if sections else ""
    return f"""#!/bin/bash
set -uxo pipefail
cd /testbed
{setup}git config --global --add safe.directory /testbed
git status
git -c core.fileMode=false diff {base_commit}
{restore}{patch}: '{START}'
{command.rstrip()}
: '{END}'
{restore}"""


def _is_new(section: str) -> bool:
    return "\nnew file mode " in section.split("\n@@ ", 1)[0] or section.startswith("--- /dev/null\n")


def dockerfile(environment: str) -> str:
    """The image of a task on top of its environment, with tree.tar beside this file as the build's context."""
    return f"""FROM {environment}
USER root
ENV PATH=/opt/env/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8
ADD tree.tar /testbed/
WORKDIR /testbed
"""

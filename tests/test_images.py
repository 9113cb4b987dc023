"""Environments: their names, how they are made, and that many makers at once make one."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import SandboxError, ensure_environment, environment_name
from sandbox.images import bubblewrap_environment, host_part
from sandbox.make_env import make_env
from sandbox.store import home, make_once

HASH = "0" * 64


def test_a_name_depends_on_the_requirements_and_not_on_their_order():
    assert environment_name(["b==2", "a==1"]) == environment_name(["a==1", "b==2", "a==1"])
    assert environment_name(["a==1"]) != environment_name(["a==2"])
    assert environment_name(["a==1"]).startswith("greengrad/env:")


@pytest.mark.parametrize(
    "line", ["pytest", "pytest>=8", "pytest==8.*", "-e .", "pytest==8 --index-url http://x", "git+https://x/y", "a==1\nb==2", ""]
)
def test_a_requirement_that_is_not_pinned_is_refused(line):
    with pytest.raises(ValueError, match="name==version"):
        environment_name([line])


def test_a_hash_may_follow_the_version():
    assert environment_name([f"a==1 --hash=sha256:{HASH}"]) != environment_name(["a==1"])


def test_an_environment_is_made_once_and_found_again(environment):
    folder = host_part(environment)
    stamp = (folder / "site").stat().st_mtime_ns
    assert ensure_environment((folder / "requirements.txt").read_text().splitlines()) == environment
    assert (folder / "site").stat().st_mtime_ns == stamp
    assert (folder / "site" / "pytest" / "__init__.py").is_file()


def test_a_wrong_hash_leaves_nothing_half_made():
    line = f"iniconfig==2.1.0 --hash=sha256:{HASH}"
    with pytest.raises(SandboxError, match="iniconfig"):
        ensure_environment([line])
    with pytest.raises(SandboxError, match="no environment"):
        host_part(environment_name([line]))


def test_compiled_packages_are_refused():
    with pytest.raises(ValueError, match="pure Python"):
        ensure_environment(["markupsafe==3.0.2"])


def test_a_list_that_leaves_out_what_its_packages_need_is_refused():
    with pytest.raises(ValueError, match=r"also need iniconfig==.*, pluggy=="):
        ensure_environment(["pytest==8.4.0"])


def test_an_unknown_environment_is_told_as_such():
    with pytest.raises(SandboxError, match="ensure_environment"):
        host_part("greengrad/env:ffffffffffffffff")


def test_an_environments_scripts_and_paths_hold_at_opt_env(environment):
    folder = bubblewrap_environment(environment)
    assert (folder / "bin" / "pytest").read_text().startswith("#!/opt/env/bin/python3\n")
    assert "/opt/env" in (folder / "bin" / "activate").read_text()
    assert str(folder.parent) not in (folder / "pyvenv.cfg").read_text() + (folder / "bin" / "activate").read_text()
    assert list(folder.glob("lib/python3*/site-packages/pytest/__pycache__/*.pyc"))


def test_make_env_runs_as_a_script_without_our_packages(tmp_path):
    (tmp_path / "site" / "bin").mkdir(parents=True)
    (tmp_path / "site" / "bin" / "tool").write_text("#!/some/python3\nprint(1)\n")
    (tmp_path / "site" / "mod.py").write_text("x = 1\n")
    script = Path(make_env.__code__.co_filename)
    subprocess.run([sys.executable, "-I", "-S", script, tmp_path / "site", tmp_path / "env"], check=True, timeout=60)
    assert (tmp_path / "env" / "bin" / "tool").read_text() == "#!/opt/env/bin/python3\nprint(1)\n"
    assert list((tmp_path / "env").glob("lib/python3*/site-packages/mod.py"))


def test_many_makers_at_once_make_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GREENGRAD_HOME", str(tmp_path))
    made = []

    def make(draft: Path) -> None:
        made.append(draft)
        (draft / "file").write_text("whole")

    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: make_once("kind", "name", make), range(32)))
    assert folders == {tmp_path / "kind" / "name"} and len(made) == 1


def test_a_maker_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GREENGRAD_HOME", str(tmp_path))

    def fail(draft: Path) -> None:
        (draft / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_once("kind", "name", fail)
    assert list((home() / "kind").iterdir()) == []

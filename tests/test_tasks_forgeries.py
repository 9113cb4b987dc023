"""The bench of forged patches: what it forges, and its short form on both backends."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"
BACKENDS = [pytest.param("docker", marks=pytest.mark.docker), pytest.param("bubblewrap", marks=pytest.mark.bubblewrap)]
BAD = "class C:\n    def f(self, x=1):\n        return x - 1\n\n    def g(self):\n        return 0\n\n\ndef h(x):\n    return x - 1\n"
GOOD = BAD.replace("x - 1", "x + 1")


@pytest.fixture(scope="module")
def forge():
    spec = spec_from_file_location("forge", BENCH / "forge.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sandbox", BACKENDS)
def test_every_forgery_of_the_short_form_that_fools_the_official_parser_is_refused(sandbox, tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, BENCH / "forgeries.py", "--quick", "--sandbox", sandbox, "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "detection rate    17/17 (100.0 %)" in done.stdout and "false-alarm rate  0/1" in done.stdout, done.stdout
    found = json.loads(figures.read_text())
    assert {name: found[name]["officially resolved"] for name in ("hooks", "equal", "caller", "true")} == {
        "hooks": 4,
        "equal": 5,
        "caller": 8,
        "true": 1,
    }
    assert found["hooks"]["refused, witness"] == 4, "what touches no source needs no audit"


def test_only_plain_functions_that_a_fix_changes_are_forged(forge):
    assert forge.changed_functions(BAD, GOOD) == ("C.f", "h")
    assert forge.changed_functions(BAD, BAD) == () == forge.changed_functions(BAD, GOOD + "y = 1\n")
    assert forge.changed_functions(BAD, BAD.replace("return 0", "yield 0")) == ()


def test_forged_source_is_right_where_it_is_asked_by_a_test_and_wrong_elsewhere(forge):
    patches = forge.forge_sources("a.py", BAD, GOOD)
    assert len(patches) == len(forge.EQUAL) + len(forge.CALLER) >= 12
    tail = patches["caller: a function called test"].split("\n@@", 1)[1]
    source = BAD + "\n".join(line[1:] for line in tail.split("\n") if line.startswith("+"))
    names = {"__name__": "a", "__file__": "a.py", "__package__": ""}
    exec(compile(source, "a.py", "exec"), names)

    def ask():
        return names["h"](5), names["C"]().f(), names["C"]().g()

    def test_of_something():
        return ask()

    assert test_of_something() == (6, 2, 0)
    names["_asked"].__globals__["sys"] = type("sys", (), {"_getframe": staticmethod(lambda: None)})  # nobody is on this stack
    assert ask() == (4, 0, 0)

"""Mining, the part that is text: requirements, layout, statements."""

import pytest

from sandbox import ensure_environment
from tasks.mine import Candidate, Change
from tasks.mine_layout import Kind, generated, kind_of, runnable, sources
from tasks.mine_pins import pin
from tasks.mine_requires import Need, find_needs, project_name
from tasks.mine_statement import added_lines, find_issue, load_issues, read_messages, reveals, statement


def lines(settings: dict[str, str]) -> list[tuple[str, str, bool]]:
    return [(need.line, need.source, need.runtime) for need in find_needs(settings)]


def test_requirements_are_found_where_repositories_write_them():
    assert lines(
        {"pyproject.toml": '[project]\nname = "a"\ndependencies = ["six>=1"]\n[dependency-groups]\ntest = ["mock"]\ndocs = ["x"]'}
    ) == [
        ("six>=1", "pyproject.toml project.dependencies", True),
        ("mock", "pyproject.toml test", False),
    ]
    assert lines({"setup.cfg": "[options]\ninstall_requires =\n  six\n[options.extras_require]\ntest = mock\n"}) == [
        ("six", "setup.cfg install_requires", True),
        ("mock", "setup.cfg extras test", False),
    ]
    assert lines({"setup.py": "R = ['six']\nsetup(name='a', install_requires=R, tests_require=['mock'], extras_require=f())"}) == [
        ("six", "setup.py install_requires", True),
        ("mock", "setup.py tests_require", False),
    ]
    assert lines({"tox.ini": "[testenv]\ndeps =\n  pytest\n  py27: mock\n  -rrequirements.txt\n"}) == [
        ("pytest", "tox.ini testenv.deps", False),
        ("mock", "tox.ini testenv.deps", False),
    ]
    assert lines({"requirements-test.txt": "# tests\nmock==1 # why\n-e .\n"}) == [("mock==1", "requirements-test.txt", False)]
    assert lines({".github/workflows/t.yml": "run: pip install -r x.txt 'mock>2' -e . six"}) == [
        ("mock>2", ".github/workflows/t.yml", False),
        ("six", ".github/workflows/t.yml", False),
    ]
    poetry = '[tool.poetry]\nname = "p"\n[tool.poetry.dependencies]\npython = "^3.8"\nsix = "^1.2"\n'
    poetry += '[tool.poetry.group.dev.dependencies]\nmock = "*"'
    assert [line for line, _, _ in lines({"pyproject.toml": poetry})] == ["six", "mock"]
    assert project_name({"pyproject.toml": poetry}) == "p"


def test_files_that_cannot_be_parsed_say_nothing():
    broken = {"pyproject.toml": "[", "setup.cfg": "x", "setup.py": "def (", "tox.ini": "[", ".github/workflows/a.yml": "pip install 'a"}
    assert lines(broken) == [] and project_name(broken) == ""


def test_a_package_is_never_installed_beside_its_own_tree():
    with pytest.raises(ValueError, match="packaging is part of the test runner"):
        pin([], "packaging")
    found = pin(
        [Need("calc", "tox.ini"), Need("mypy", "tox.ini"), Need("x @ https://a.example/x", "tox.ini"), Need("???", "tox.ini")], "Calc"
    )
    assert [why.rsplit(": ", 1)[1] for why in found.dropped] == [
        "the package itself",
        "a tool, not needed to run tests",
        "not from the index",
        "not a plain requirement",
    ]


def test_a_release_that_requires_the_package_itself_is_refused():
    with pytest.raises(ValueError, match="need python-dateutil itself"):
        pin([Need("arrow==1.3.0", "tox.ini")], "python-dateutil")


def test_a_version_that_has_a_compiled_wheel_as_well_is_pinned_to_its_pure_one():
    pins = pin([Need("simplejson==3.20.2", "tox.ini")], "calc")
    assert ensure_environment(pins.requirements).startswith("greengrad/env:")
    assert any(line.startswith("simplejson==3.20.2 --hash=sha256:") for line in pins.requirements)


def test_a_runtime_need_that_is_compiled_is_the_reason():
    with pytest.raises(ValueError, match="it needs lxml, of which there is no pure-Python wheel"):
        pin([Need("lxml", "setup.py", runtime=True)], "calc")
    assert "lxml (tox.ini): no pure-Python wheel" in pin([Need("lxml", "tox.ini")], "calc").dropped[0]


def test_source_tests_and_the_rest_are_told_apart():
    kinds = {
        "src/a/b.py": Kind.SOURCE,
        "a/tests/data.txt": Kind.TEST,
        "a/test_x.py": Kind.TEST,
        "conftest.py": Kind.TEST,
        "a.md": Kind.OTHER,
    }
    kinds |= {"docs/conf.py": Kind.OTHER, "setup.py": Kind.OTHER, "src/flask/testing.py": Kind.SOURCE}
    assert {name: kind_of(name) for name in kinds} == kinds
    assert runnable(["tests/test_a.py", "tests/helpers.py", "tests/a.json", "tests/conftest.py"]) == ("tests/test_a.py",)
    assert sources(["src/a.py", "b.py"]) == ("src", ".") and sources(["a.py"]) == (".",)


def test_what_a_build_would_write_is_written_where_the_tree_lacks_it():
    settings = {"pyproject.toml": '[project]\nname = "a-b"\n[tool.setuptools_scm]\nwrite_to = "src/a/_version.py"'}
    files = generated(settings, ["src/a/__init__.py"], ["from importlib.metadata import version"])
    assert set(files) == {"src/a/_version.py", "src/a_b.egg-info/PKG-INFO"}
    assert "Name: a-b\n" in files["src/a_b.egg-info/PKG-INFO"]
    assert generated(settings, ["src/a/_version.py"], ["import os"]) == {}
    outside = {"pyproject.toml": '[tool.setuptools_scm]\nwrite_to = "../../x.py"'}
    assert generated(outside, [], []) == {}


def test_a_statement_never_holds_a_line_of_the_fix():
    secrets = added_lines([Change("a.py", "def f(n):\n    return n\n", "def f(n):\n    return n * factor\n")])
    assert secrets == ("return n * factor",)
    text = "f is wrong\n\n- it forgets\n+    return n * factor\nuse `return  n*factor` here\nCo-authored-by: x <y>\n"
    told = statement(text, {"t.py::test_f[1]": "assert 1 == 2", "t.py::test_g": "return n * factor"}, secrets)
    assert told == "f is wrong\n\n- it forgets\n\nThe test `test_f` fails:\n\n    assert 1 == 2\n"
    assert reveals("x; return n*factor", secrets) and not reveals(told, secrets)
    assert statement("return n * factor", {}, secrets) == ""


def test_issues_are_found_by_commit_and_by_number(tmp_path):
    path = tmp_path / "issues.jsonl"
    path.write_text('{"commit": "abc", "text": "by id"}\n{"issue": 12, "text": "by number"}\n')
    issues = load_issues(path)
    one = Candidate("abc", "", "", "Fix (#12)", (), ())
    assert find_issue(one, issues) == "by id"
    assert find_issue(Candidate("abd", "", "", "Fix (#12)", (), ()), issues) == "by number"
    assert find_issue(Candidate("abd", "", "", "Fix (#123)", (), ()), issues) == ""
    path.write_text("[]\n")
    with pytest.raises(ValueError, match=r"issues.jsonl:1: write"):
        load_issues(path)


def test_messages_are_read_from_short_tracebacks():
    log = "____ TestA.test_b ____\nE   assert 1 == 2\nE    +  where\n____ ERROR collecting t/test_c.py ____\nE   ImportError: no\n"
    tests = ["t/test_a.py::TestA::test_b", "t/test_c.py::test_d"]
    assert read_messages(log, tests) == {tests[0]: "assert 1 == 2\n +  where", tests[1]: "ImportError: no"}

"""A tiny suite built in code: three repositories of one module each, with real tests; for tests and first steps, not for training."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandbox import Image, ensure_environment, make_tree

from .base import Suite, Task
from .patches import diff_text
from .script import dockerfile, eval_script, pytest_command
from .store import load_suite, write_config, write_task

REQUIREMENTS = ("iniconfig==2.1.0", "packaging==25.0", "pluggy==1.6.0", "pygments==2.19.2", "pytest==8.4.1")
"""What the tests of toy tasks need in /opt/env."""
DATASET = "greengrad/toy"


@dataclass(frozen=True, slots=True)
class _Toy:
    name: str
    statement: str
    good: str
    bad: tuple[str, str]
    """What is written in the good source, and what stands there in the bug's place."""
    tests: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]


_TOYS = (
    _Toy(
        "add",
        "`add` in `calc.py` is wrong: add(2, 3) should be 5, but it is -1.",
        "def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return a * 2\n",
        ("a + b", "a - b"),
        "from calc import add, double\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\ndef test_double():\n    assert double(4) == 8\n",
        ("test_add",),
        ("test_double",),
    ),
    _Toy(
        "clamp",
        "`clamp` in `calc.py` is wrong: clamp(9, 0, 5) should be 5, but it is 9.",
        "def clamp(x, low, high):\n    if x < low:\n        return low\n    if x > high:\n        return high\n    return x\n",
        ("return high", "return x"),
        "from calc import clamp\n\n\ndef test_high():\n    assert clamp(9, 0, 5) == 5\n\n\n"
        "def test_low():\n    assert clamp(-1, 0, 5) == 0\n",
        ("test_high",),
        ("test_low",),
    ),
    _Toy(
        "words",
        "`words` in `calc.py` is wrong: words('a b') should be ['a', 'b'], but it is ['b'].",
        "def words(text):\n    return text.split()[0:]\n\n\ndef first(text):\n    return text[:1]\n",
        ("[0:]", "[1:]"),
        "from calc import first, words\n\n\ndef test_words():\n    assert words('a b') == ['a', 'b']\n\n\n"
        "def test_one_word():\n    assert words('a') == ['a']\n\n\ndef test_first():\n    assert first('xy') == 'x'\n",
        ("test_words", "test_one_word"),
        ("test_first",),
    ),
)


def toy_suite(folder: Path) -> Suite:
    """Write the toy suite into a folder (two train tasks, one test task) and load it; makes its environment on first use."""
    environment = ensure_environment(REQUIREMENTS)
    write_config(folder, DATASET, ("train", "test"))
    with tempfile.TemporaryDirectory(prefix="greengrad-toy-") as scratch:
        for number, toy in enumerate(_TOYS):
            task = _task(toy, environment, Path(scratch) / toy.name, "test" if number == 2 else "train")
            write_task(folder, task, dockerfile(environment), DATASET)
    return load_suite(folder)


def _task(toy: _Toy, environment: str, scratch: Path, split: str) -> Task:
    broken = toy.good.replace(*toy.bad)
    tests = f"tests/test_{toy.name}.py"
    (scratch / "repo" / "tests").mkdir(parents=True)
    (scratch / "repo" / "calc.py").write_text(broken)
    (scratch / "repo" / "tests" / "README").write_text("The tests of calc.py.\n")
    commit = make_tree(scratch / "repo", scratch / "tree.tar")
    test_patch = diff_text(tests, None, toy.tests)
    return Task(
        instance_id=f"greengrad__toy-{toy.name}",
        repo="greengrad/toy",
        version="1",
        base_commit=commit,
        problem_statement=toy.statement,
        image=Image(environment, scratch / "tree.tar"),
        gold_patch=diff_text("calc.py", broken, toy.good),
        test_patch=test_patch,
        eval_script=eval_script(commit, test_patch, pytest_command(["."], [tests])),
        log_parser="parse_log_pytest",
        fail_to_pass=tuple(f"{tests}::{name}" for name in toy.fail_to_pass),
        pass_to_pass=tuple(f"{tests}::{name}" for name in toy.pass_to_pass),
        split=split,
        test_seconds=60.0,
        files=("calc.py",),
        requirements=REQUIREMENTS,
    )

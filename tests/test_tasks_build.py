"""Recipes become suites: a real package end to end, interrupted and resumed; and what is refused."""

import hashlib
import io
import json
import tarfile

import pytest
import yaml

from sandbox import open_backend
from tasks import build_suite, load_suite, validate_suite
from tasks.recipe import SHIPPED, load_recipe
from tasks.sdist import fetch_sdist, unpack_sdist
from tasks.swebench import instance_row

SMALL = load_recipe("small")
SEMVER = next(package for package in SMALL.packages if package.name == "semver")


def recipe(tasks=3):
    return SMALL.model_copy(update={"packages": (SEMVER.model_copy(update={"tasks": tasks}),), "dataset": "greengrad/tiny"})


class Interrupted(Exception):
    pass


async def test_a_real_package_becomes_sound_tasks_and_an_interrupted_build_goes_on(backend, tmp_path):
    out = tmp_path / "suite"

    def interrupt(done, total, line):
        if done == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        await build_suite(recipe(), out, backend, interrupt)
    first = [task.instance_id for task in load_suite(out).tasks]
    assert len(first) == 1
    seen = []
    suite = await build_suite(recipe(), out, backend, lambda done, total, line: seen.append((done, total)))
    assert len(suite.tasks) == 3 and suite.broken == {} and first[0] in {task.instance_id for task in suite.tasks}
    assert seen[-1] == (3, 3) and not (out / ".partial").exists()

    lines = [json.loads(line) for line in (out / "lineage.jsonl").read_text().splitlines()]
    assert sum(line["kept"] for line in lines) == 3 and all(line["kept"] or line["why"] for line in lines)
    assert len({line["mutation"] for line in lines}) == len(lines)
    for task in suite.tasks:
        check_task(task)
    validations = await validate_suite(suite, backend, repeats=2)
    assert all(item.sound and not item.failed for item in validations)
    again = [json.loads(line) for line in (out / "lineage.jsonl").read_text().splitlines()][len(lines) :]
    assert [(line["step"], line["gold"], line["noop"]) for line in again] == [("validate", ["resolved"] * 2, ["unresolved"] * 2)] * 3


def check_task(task):
    """What holds for every planted bug."""
    from swebench.harness.utils import make_test_spec

    assert task.fail_to_pass and task.pass_to_pass and task.split == "test" and task.repo == "pypi/semver"
    assert len(task.problem_statement) < 480 and task.files[0] in task.problem_statement
    fixed = [line[1:].strip() for line in task.gold_patch.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert len(fixed) == 1 and fixed[0] not in task.problem_statement
    assert list(task.fail_to_pass) == make_test_spec(instance_row(task)).FAIL_TO_PASS
    with tarfile.open(task.image.tree) as tar:
        names = tar.getnames()
    hidden = {test.split("::")[0] for test in task.fail_to_pass}
    assert task.files[0] in names and not hidden & set(names), "tests that notice the bug must not be in the agent's tree"
    assert ".git/HEAD" in names and not [name for name in names if name.startswith(".git/logs")]


@pytest.mark.docker
@pytest.mark.bubblewrap
async def test_a_suite_is_the_same_whenever_and_wherever_and_by_however_many_it_is_built(tmp_path):
    how = (("docker", 1), ("bubblewrap", 3))
    first, second = [await build_suite(recipe(2), tmp_path / name, open_backend(name), jobs=jobs) for name, jobs in how]
    tried = [[json.loads(line) for line in (tmp_path / name / "lineage.jsonl").read_text().splitlines()] for name, _ in how]
    assert tried[0] == tried[1]
    assert [instance_row(task) for task in first.tasks] == [instance_row(task) for task in second.tasks]
    assert first.tasks[0].image.tree.read_bytes() == second.tasks[0].image.tree.read_bytes()
    with pytest.raises(ValueError, match="another recipe"):
        await build_suite(recipe(3), tmp_path / "docker", open_backend("docker"))


def test_shipped_recipes_are_whole_and_split_by_package():
    for path in SHIPPED.glob("*.yaml"):
        found = load_recipe(path.stem)
        names = [package.name for package in found.packages]
        assert len(set(names)) == len(names) >= 4 and {package.split for package in found.packages} == {"train", "test"}
        wanted = {split: sum(package.tasks for package in found.packages if package.split == split) for split in ("train", "test")}
        assert wanted["train"] >= 32 and wanted["test"] >= 16


def test_bad_recipes_are_refused_in_one_line(tmp_path):
    good = yaml.safe_load((SHIPPED / "small.yaml").read_text())
    path = tmp_path / "mine.yaml"
    for change, complaint in (
        ({"sed": 1}, "sed"),
        ({"packages": []}, "packages"),
        ({"max_lines": "many"}, "max_lines"),
        ({"without": ["loops"]}, "no such kind: loops"),
    ):
        path.write_text(yaml.safe_dump(good | change))
        with pytest.raises(ValueError, match=complaint) as caught:
            load_recipe(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    path.write_text("a: [b")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(path)
    with pytest.raises(FileNotFoundError, match=r"one of .*small"):
        load_recipe("smal")


def archive(folder, members):
    path = folder / "x-1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("link"):
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    return path


def test_unpacking_takes_files_alone_and_none_outside(tmp_path):
    members = {
        "x-1/a.py": b"a",
        "x-1/docs/b": b"b",
        "x-1/../../evil": b"e",
        "x-1/link": b"",
        "x-1/.git/config": b"g",
        "x-1/x.egg-info/y": b"y",
    }
    unpack_sdist(archive(tmp_path, members), tmp_path / "out" / "tree", exclude=("docs",))
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["tree", "a.py"] and not (tmp_path / "evil").exists()


def test_a_source_with_another_hash_is_refused(tmp_path):
    wanted = hashlib.sha256(b"something").hexdigest()
    (tmp_path / f"{wanted}.tar.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the recipe's"):
        fetch_sdist("x", "1", wanted, tmp_path)

"""What a run was made of, and what must be equal when it goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config_io import default_values, load_config
from pipeline.manifest import hash_folder, identity, make_manifest, record_images, write_manifest

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def config(*overrides: str) -> Config:
    return load_config(QUICKSTART, overrides, Config)


def test_a_run_that_goes_on_with_the_same_configuration_keeps_its_first_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest(config(), seeds={"train": 7}))
    first = (tmp_path / "manifest.json").read_text()
    assert write_manifest(tmp_path, make_manifest(config())) == []
    assert (tmp_path / "manifest.json").read_text() == first
    found = json.loads(first)
    assert found["seeds"] == {"train": 7}
    assert found["machine"]["cores"] >= 1 and found["packages"]["greengrad"]


def test_another_configuration_is_refused_and_the_key_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest(config()))
    with pytest.raises(ValueError, match=r"another configuration \(optim\.lr 1e-05 -> 3e-06\)"):
        write_manifest(tmp_path, make_manifest(config("--optim.lr", "3e-6")))


def test_what_says_how_fast_or_how_far_may_change(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest(config()))
    assert write_manifest(tmp_path, make_manifest(config("--sandbox.concurrency", "2", "--train.steps", "9"))) == []
    assert write_manifest(tmp_path, make_manifest(config("--learner.ranks", "2"))) == []


def test_a_key_that_was_not_free_in_an_older_version_does_not_stop_its_runs(tmp_path: Path) -> None:
    before = make_manifest(config())
    write_manifest(tmp_path, replace(before, config={**before.config, "learner.ranks": 4}))
    assert write_manifest(tmp_path, before) == []


def test_a_key_that_an_older_version_did_not_know_stops_its_runs_only_where_it_is_not_the_default(tmp_path: Path) -> None:
    older = make_manifest(config())
    unknown = ("rollout.trees", "train.max_lag", "learner.lora")
    write_manifest(tmp_path, replace(older, config={key: value for key, value in older.config.items() if key not in unknown}))
    assert write_manifest(tmp_path, older, default_values(Config)) == []
    with pytest.raises(ValueError, match=r"another configuration \(rollout\.trees True -> False\)"):
        write_manifest(tmp_path, make_manifest(config("--rollout.trees", "false")), default_values(Config))


def test_every_default_is_what_a_configuration_holds_that_sets_nothing() -> None:
    bare = load_config(None, ["--tasks.suite", "s"], Config)
    known = default_values(Config)
    assert {key: value for key, value in identity(bare).items() if known.get(key) != json.loads(json.dumps(value))} == {"tasks.suite": "s"}


def test_another_version_of_a_package_is_told(tmp_path: Path) -> None:
    before = make_manifest(config())
    write_manifest(tmp_path, replace(before, packages={**before.packages, "swebench": "4.0.0"}))
    (line,) = write_manifest(tmp_path, before)
    assert line == f"swebench was 4.0.0 and is {before.packages['swebench']}"


def test_the_hash_of_a_folder_changes_with_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = hash_folder(tmp_path)
    assert hash_folder(tmp_path) == first
    (tmp_path / "a").write_text("2")
    second = hash_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, hash_folder(tmp_path)}) == 3
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        hash_folder(tmp_path / "none")


def test_images_are_recorded_once_they_are_there_and_another_one_under_the_same_name_is_told(tmp_path: Path) -> None:
    assert record_images(tmp_path, {"a:1": "sha256:1"}) == [] and not list(tmp_path.iterdir())
    write_manifest(tmp_path, make_manifest(config()))
    assert record_images(tmp_path, {"a:1": "sha256:1"}) == []
    assert record_images(tmp_path, {"a:1": "sha256:2", "b:1": "sha256:3"}) == ["image a:1 was sha256:1 and is sha256:2"]
    assert json.loads((tmp_path / "manifest.json").read_text())["images"] == {"a:1": "sha256:1", "b:1": "sha256:3"}

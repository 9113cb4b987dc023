"""The configuration: what is accepted, what is refused, and the one line that says so."""

from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config_io import dump_config, load_config

REPOSITORY = Path(__file__).parent.parent


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_config(path, overrides, Config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_config(path, [], Config).tasks.suite


def test_an_override_goes_into_the_tree_before_validation(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {suite: s}\noptim: {lr: 1.0e-5, weight_decay: 0.3}\n")
    config = load_config(path, ["--optim.lr", "3e-6", "--credit.kind=leave_one_out", "--tasks.limit", "null", "--rft.epochs", "2"], Config)
    assert (config.optim.lr, config.optim.weight_decay, config.credit.kind) == (3e-6, 0.3, "leave_one_out")
    assert config.tasks.limit is None
    assert config.rft is not None and config.rft.epochs == 2


def test_an_unknown_key_in_the_file_gets_a_suggestion(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "tasks: {suite: s}\nrollout: {group_sise: 4}\n")).endswith(
        "unknown key rollout.group_sise (did you mean rollout.group_size?)"
    )


def test_an_unknown_key_on_the_command_line_gets_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {suite: s}\n")
    assert refusal(path, "--credit.knd", "episode") == "command line: unknown key credit.knd (did you mean credit.kind?)"
    assert refusal(path, "--group_size", "4") == "command line: unknown key group_size (did you mean rollout.group_size?)"


def test_a_key_like_no_other_gets_the_names_of_its_section(tmp_path: Path) -> None:
    assert "(optim has: lr, betas" in refusal(write(tmp_path, "tasks: {suite: s}\noptim: {zzz: 4}\n"))


def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {suite: s}\noptim: {lr: -1}\n")
    assert refusal(path) == f"{path}: optim.lr = -1: input should be greater than 0"
    assert refusal(path, "--optim.lr", "1", "--sandbox.backend", "podman") == (
        "command line: sandbox.backend = 'podman': input should be 'auto', 'docker' or 'bubblewrap'"
    )


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\n")
    assert refusal(path) == f"{path}: tasks is missing"


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "key 'lr' stands twice" in refusal(write(tmp_path, "tasks: {suite: s}\noptim: {lr: 1, lr: 2}\n"))


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "a: b: c\n"])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    assert refusal(write(tmp_path, text)).startswith(str(tmp_path / "run.yaml"))


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {suite: s}\n")
    assert refusal(path, "--optim.lr") == "command line: --optim.lr needs a value"
    assert refusal(path, "--optim.lr", "--name", "x") == "command line: --optim.lr needs a value"
    assert "is not an override" in refusal(path, "lr=3")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml", [], Config)


def test_a_dumped_config_loads_as_the_same_config(tmp_path: Path) -> None:
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", ["--optim.lr", "0.1"], Config)
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", [], Config) == config

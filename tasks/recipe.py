"""Recipes: which packages of the index become which tasks; a person writes them, build.py cooks them; knows no sandbox."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .mutate import COMBINED
from .operators_flow import KINDS

SHIPPED = Path(__file__).parent / "recipes"


def _added(default: Any) -> Any:
    """A key that came later: left out of recipe.json where it has its default, so that older recipes keep their bytes."""
    return Field(default, exclude_if=lambda value: value == default)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(_Section):
    """One release of one package, and how many tasks are made of it."""

    name: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the source distribution on the index, or of a local source."""
    split: Literal["train", "test"]
    """The split rule is by package: all tasks of a package are in one split, so no held-out function was seen in training."""
    tasks: int = Field(ge=1)
    sources: tuple[str, ...] = (".",)
    """Folders that hold the importable packages: "." or "src"."""
    modules: tuple[str, ...]
    """Folders or files in which bugs are planted."""
    tests: tuple[str, ...] = ("tests",)
    exclude: tuple[str, ...] = ()
    """Left out of the tree: big or irrelevant folders and files."""
    slow: tuple[str, ...] = ()
    """Test files that grade no task. Listed by a person: a measured time would make another suite on another day."""
    requirements: tuple[str, ...] = _added(())
    """What its tests need beside the recipe's, pinned."""
    plugins: tuple[str, ...] = _added(())
    """Modules of pytest plugins that its tests need."""
    generated: dict[str, str] = _added({})
    """Files that its build would write and the source lacks: path -> text."""
    origin: Literal["pypi", "local"] = _added("pypi")
    """local: the source is SUITE/sources/<sha256>.tar, beside recipe.json."""


class Recipe(_Section):
    """A suite to be built."""

    dataset: str
    seed: int = 0
    requirements: tuple[str, ...]
    """What /opt/env holds, pinned: pytest and what it needs."""
    min_lines: int = Field(3, ge=2)
    max_lines: int = Field(15, ge=2)
    """Only functions of so many lines, so that one view shows all of it."""
    per_function: int = Field(2, ge=1)
    max_failing: int = Field(20, ge=1)
    """A bug that more tests notice is no puzzle."""
    statement: Literal["located", "behaviour"] = _added("located")
    """What a problem statement says: the function and its file, or only how it behaves, as a user would."""
    without: tuple[str, ...] = _added(())
    """Kinds of bug that are not planted."""
    packages: tuple[Package, ...] = Field(min_length=1)

    @field_validator("without")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(kinds) - {*KINDS, COMBINED}:
            raise ValueError(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join((*KINDS, COMBINED))}")
        return kinds


def local_archive(package: Package) -> str:
    """Where a suite keeps the source of a package that is on no index."""
    return f"sources/{package.sha256}.tar"


def load_recipe(name: str | Path) -> Recipe:
    """A shipped recipe by name (small, medium) a YAML file or a suite's recipe.json; ValueError names the file and the field."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise FileNotFoundError(f"no recipe {name}: give a YAML file, the recipe.json of a suite, or one of {shipped}")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {field}: {first['msg']}") from None

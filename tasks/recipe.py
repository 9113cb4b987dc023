"""Recipes: which packages of the index become which tasks; a person writes them, build.py cooks them; knows no sandbox."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

SHIPPED = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(_Section):
    """One release of one package, and how many tasks are made of it."""

    name: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the source distribution on the index."""
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
    packages: tuple[Package, ...] = Field(min_length=1)


def load_recipe(name: str | Path) -> Recipe:
    """A shipped recipe by name (small, medium) or a YAML file; ValueError names the file and the field."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise FileNotFoundError(f"no recipe {name}: give a YAML file or one of {shipped}")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {field}: {first['msg']}") from None

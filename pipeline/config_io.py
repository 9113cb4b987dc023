"""YAML + dotted overrides -> a checked configuration, and back to a file; knows the schema's shape, not what its knobs do.

Every mistake of a person is a ValueError or FileNotFoundError with one line: where, which key, which value, what is allowed.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)

COMMAND_LINE = "command line"


def load_config(path: Path | None, overrides: Sequence[str], schema: type[M]) -> M:
    """Read a YAML file (None: start from nothing), put `--section.key value ...` into its tree, check the whole against the schema.

    >>> load_config(Path("configs/quickstart.yaml"), ["--optim.lr", "3e-6"], Config).optim.lr
    3e-06
    """
    tree = read_yaml(path) if path else {}
    pairs = parse_overrides(overrides)
    for key, value in pairs.items():
        _check_key(key, schema)
        _put(tree, key, value)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(details, path or COMMAND_LINE, pairs, schema) for details in error.errors()[:3])) from None


def dump_config(config: BaseModel, path: Path) -> None:
    """Write the resolved configuration, in one piece or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    os.replace(part, path)


def override(key: str, value: str | int | Path) -> list[str]:
    """The words of one override; text stays text, whatever it would mean in YAML."""
    return [f"--{key}", str(value) if isinstance(value, int) else json.dumps(str(value))]


def read_text(path: Path) -> str:
    """A person's file; ValueError that names it where it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a key written twice is an error, because one of the two would silently do nothing."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        tree = yaml.load(read_text(path), Loader=_StrictLoader)
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder, not a configuration file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    return tree


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """["--optim.lr", "3e-6", "--name=x"] -> {"optim.lr": "3e-6", "name": "x"}; values are read as YAML."""
    pairs: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ValueError(f"{COMMAND_LINE}: {word!r} is not an override; write --section.key value")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ValueError(f"{COMMAND_LINE}: --{key} needs a value")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            pairs[key] = value
    return pairs


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    """Set tree["a"]["b"] for key "a.b"; a section that is absent or null is made."""
    *sections, leaf = key.split(".")
    for name in sections:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[leaf] = value


def _check_key(key: str, schema: type[BaseModel]) -> None:
    known = dict(_keys(schema))
    if key not in known:
        raise ValueError(f"{COMMAND_LINE}: unknown key {key}{_suggest(key, known)}")


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel] | None]]:
    """Every dotted key of a schema, with its section where it is one."""
    for name, field in schema.model_fields.items():
        section = _section_of(field.annotation)
        yield prefix + name, section
        if section:
            yield from _keys(section, f"{prefix}{name}.")


def default_values(schema: type[BaseModel]) -> dict[str, Any]:
    """Every dotted key that has a default, and the default as JSON has it; sections that may be absent as if they were there."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if section := _section_of(field.annotation):
            found |= {f"{name}.{key}": value for key, value in default_values(section).items()}
        elif not field.is_required():
            found[name] = json.loads(json.dumps(field.get_default(call_default_factory=True), default=str))
    return found


def _section_of(annotation: object) -> type[BaseModel] | None:
    """The model in `Model` or `Model | None`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _suggest(key: str, known: Mapping[str, object]) -> str:
    """' (did you mean optim.lr?)', by the whole key or its last word; else the names that the section has."""
    section, _, leaf = key.rpartition(".")
    leaves = {name.rpartition(".")[2]: name for name in known}
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {section + '.' if section else ''}{close[0]}?)"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75) or [
        leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8)
    ]
    if close:
        return f" (did you mean {close[0]}?)"
    return f" ({section or 'the top level'} has: {', '.join(siblings)})" if siblings else ""


def _explain(details: ErrorDetails, path: Path | str, pairs: Mapping[str, object], schema: type[BaseModel]) -> str:
    """One pydantic error as 'where: key = value: what is allowed'."""
    key = ".".join(str(part) for part in details["loc"])
    where = COMMAND_LINE if key in pairs else str(path)
    if details["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}{_suggest(key, dict(_keys(schema)))}"
    if details["type"] == "missing":
        return f"{where}: {key} is missing"
    if details["type"] == "value_error":  # one of our own validators: it names its keys
        return f"{path}: {details['msg'].removeprefix('Value error, ')}"
    return f"{where}: {key} = {details['input']!r}: {details['msg'][:1].lower()}{details['msg'][1:]}"

"""What a repository says that its tests need: pyproject, setup.cfg, setup.py, tox, requirements files, CI; pure text, runs nothing."""

import ast
import configparser
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TESTING = re.compile(r"test|dev|^all$", re.IGNORECASE)
_REQUIREMENTS = re.compile(r"(requirements/)?[\w-]*(requirements|test|dev)[\w-]*\.(txt|in)|requirements/[\w-]+\.(txt|in)")
SETTINGS = re.compile(rf"pyproject\.toml|setup\.cfg|setup\.py|tox\.ini|{_REQUIREMENTS.pattern}|\.github/workflows/[\w.-]+\.ya?ml")
"""Files that are read."""


@dataclass(frozen=True, slots=True)
class Need:
    """One requirement as a repository writes it, and where."""

    line: str
    source: str
    runtime: bool = False
    """Whether the package itself needs it; False for its tests alone."""


def find_needs(settings: Mapping[str, str]) -> tuple[Need, ...]:
    """Every requirement that is told, in order, each line once. What cannot be parsed says nothing."""
    found: dict[str, Need] = {}
    for need in _all(settings):
        line = need.line.split(" #")[0].strip()
        if line and not line.startswith(("#", "-", "{", "$")) and line not in found:
            found[line] = Need(line, need.source, need.runtime)
    return tuple(found.values())


def project_name(settings: Mapping[str, str]) -> str:
    """The name of the distribution that the repository makes; "" where it does not say."""
    table = _toml(settings)
    name = table.get("project", {}).get("name") or table.get("tool", {}).get("poetry", {}).get("name")
    if not name:
        name = _ini(settings.get("setup.cfg", "")).get("metadata", "name", fallback="")
    if not name:
        name = next((value for key, value in _setup_words(settings) if key == "name" and isinstance(value, str)), "")
    return name if isinstance(name, str) else ""


def _all(settings: Mapping[str, str]) -> Iterator[Need]:
    yield from _pyproject(_toml(settings))
    yield from _setup_cfg(_ini(settings.get("setup.cfg", "")))
    yield from _setup_py(settings)
    tox = _ini(settings.get("tox.ini", ""))
    for line in tox.get("testenv", "deps", fallback="").splitlines():
        yield Need(line.split(":", 1)[-1] if re.match(r"\s*[\w{},-]+\s*:", line) else line, "tox.ini testenv.deps")
    for path, text in settings.items():
        if _REQUIREMENTS.fullmatch(path) and "doc" not in path:
            yield from (Need(line, path) for line in text.splitlines())
        elif path.startswith(".github/"):
            yield from (Need(word, path) for word in _installed_by_ci(text))


def _toml(settings: Mapping[str, str]) -> dict[str, Any]:
    try:
        return tomllib.loads(settings.get("pyproject.toml", ""))
    except tomllib.TOMLDecodeError:
        return {}


def _ini(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return configparser.ConfigParser(interpolation=None)
    return parser


def _pyproject(table: dict[str, Any]) -> Iterator[Need]:
    project, poetry = table.get("project", {}), table.get("tool", {}).get("poetry", {})
    yield from (Need(line, "pyproject.toml project.dependencies", True) for line in _lines(project.get("dependencies")))
    yield from (Need(_poetry(*item), "pyproject.toml tool.poetry.dependencies", True) for item in poetry.get("dependencies", {}).items())
    groups = {**project.get("optional-dependencies", {}), **table.get("dependency-groups", {})}
    for name, lines in groups.items():
        if _TESTING.search(name):
            yield from (Need(line, f"pyproject.toml {name}") for line in _lines(lines))
    old = {"dev": {"dependencies": poetry.get("dev-dependencies", {})}}
    for name, group in {**old, **poetry.get("group", {})}.items():
        if _TESTING.search(name):
            yield from (Need(_poetry(*item), f"pyproject.toml tool.poetry {name}") for item in group.get("dependencies", {}).items())


def _poetry(name: str, wanted: object) -> str:
    """A requirement of poetry; its ^ and ~ are left out, so that what can be installed decides."""
    if name == "python" or (isinstance(wanted, dict) and wanted.get("optional")):
        return ""
    return f"{name}{wanted}" if isinstance(wanted, str) and wanted[:1] in "<>=!" else name


def _setup_cfg(parser: configparser.ConfigParser) -> Iterator[Need]:
    runtime = parser.get("options", "install_requires", fallback="")
    yield from (Need(line, "setup.cfg install_requires", True) for line in runtime.splitlines())
    yield from (Need(line, "setup.cfg tests_require") for line in parser.get("options", "tests_require", fallback="").splitlines())
    extras = parser["options.extras_require"].items() if parser.has_section("options.extras_require") else ()
    for name, lines in extras:
        if _TESTING.search(name):
            yield from (Need(line, f"setup.cfg extras {name}") for line in lines.splitlines())


def _setup_py(settings: Mapping[str, str]) -> Iterator[Need]:
    for key, value in _setup_words(settings):
        if key in ("install_requires", "tests_require"):
            yield from (Need(line, f"setup.py {key}", key == "install_requires") for line in _lines(value))
        elif key == "extras_require" and isinstance(value, dict):
            for name, lines in value.items():
                if _TESTING.search(str(name)):
                    yield from (Need(line, f"setup.py extras {name}") for line in _lines(lines))


def _setup_words(settings: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    """Keywords of setup() that are literals, or names of literals of the module; setup.py is parsed, never run."""
    try:
        tree = ast.parse(settings.get("setup.py", ""))
    except (SyntaxError, ValueError):
        return
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "setup":
            for word in node.keywords:
                expression = values.get(word.value.id, word.value) if isinstance(word.value, ast.Name) else word.value
                try:
                    yield word.arg or "", ast.literal_eval(expression)
                except (ValueError, TypeError, RecursionError):
                    continue


def _lines(value: object) -> list[str]:
    if isinstance(value, str):
        return value.splitlines()
    return [line for line in value if isinstance(line, str)] if isinstance(value, list | tuple) else []


def _installed_by_ci(text: str) -> Iterator[str]:
    """What `pip install` lines name: plain names, no options, paths or files."""
    for match in re.finditer(r"pip3? install ([^\n|&;]+)", text):
        try:
            words = shlex.split(match[1], comments=True)
        except ValueError:
            continue
        option = False
        for word in words:
            skip, option = option, word in ("-r", "-c", "-e", "--requirement", "--constraint", "--editable")
            if not skip and re.fullmatch(r"[A-Za-z][\w.-]*(\[[\w,-]+\])?([<>=!~]=?[\w.*]+)?", word) and not word.endswith((".txt", ".whl")):
                yield word

"""A test module whose tests do not show that a runner calls them, as text; knows no task and no machine.

Neither on the stack (a test has a thread of its own) nor in sys.modules, sys.argv or the environment. For tests that are renamed already
(variants.py): code that is right only where it sees a test, or pytest, is wrong here.
"""

import ast

UNSEEN = """
import contextlib as _contextlib
import contextvars as _contextvars
import functools as _functools
import inspect as _inspect
import os as _os
import sys as _sys
import threading as _threading
import unittest as _unittest

@_contextlib.contextmanager
def _unseen():
    words = _sys.argv
    _sys.argv = [""] if "pytest" in words[0] else words
    modules = {name: _sys.modules.pop(name) for name in ("pytest", "_pytest") if name in _sys.modules}
    told = {name: _os.environ.pop(name) for name in list(_os.environ) if name.startswith("PYTEST")}
    try:
        yield
    finally:
        _sys.argv = words
        _sys.modules.update(modules)
        _os.environ.update(told)

def _alone(function):
    @_functools.wraps(function)
    def called(*arguments, **named):
        raised = []
        def run():
            try:
                function(*arguments, **named)
            except BaseException as error:
                raised.append(error)
        with _unseen():
            thread = _threading.Thread(target=_contextvars.copy_context().run, args=(run,))
            thread.start()
            thread.join()
        if raised:
            raise raised[0]
    return called

with _unseen():
    pass

def _hide(owner):
    case = isinstance(owner, type) and issubclass(owner, _unittest.TestCase)
    for name in dir(owner) if case else list(vars(owner)):
        item = _inspect.getattr_static(owner, name)
        if not name.startswith(("check", "test")) or not _inspect.isfunction(item) or _inspect.iscoroutinefunction(item):
            continue
        if item.__code__.co_name.startswith("test"):
            item.__code__ = item.__code__.replace(co_name="check")
        setattr(owner, "test" + name[5:] if case and name.startswith("check") else name, _alone(item))

_hide(_sys.modules[__name__])
for _item in list(globals().values()):
    if isinstance(_item, type) and _item.__module__ == __name__:
        _hide(_item)
"""
"""Around a test module: its body and its tests run without a runner in sight. A test has a thread of its own, whose stack is empty."""


def unseen(source: str) -> str:
    """A renamed file whose tests do not show the code under test that a runner calls them; what they raise is raised again."""
    body, frame = ast.parse(source).body, ast.parse(UNSEEN)
    first = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    runner = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom) and _brings_runner(node)]
    block = next(node for node in frame.body if isinstance(node, ast.With))
    block.body = [node for node in body if node not in (*first, *runner)] or block.body
    return ast.unparse(ast.Module([*first, *runner, *frame.body], [])) + "\n"


def _brings_runner(node: ast.Import | ast.ImportFrom) -> bool:
    """Such imports go before the rest: what the module imports meanwhile does not find a runner in sys.modules."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
    return any(name.split(".")[0] in ("pytest", "_pytest") for name in names)

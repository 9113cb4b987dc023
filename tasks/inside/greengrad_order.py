"""A pytest plugin that runs the tests in the opposite order: a task whose verdict depends on it is not sound; imports nothing of ours."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Last test first."""
    items.reverse()

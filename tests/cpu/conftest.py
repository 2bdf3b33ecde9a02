"""One thread: the models are tiny, and threads that wait for each other would only cost time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# They need transformers, whose import alone takes seconds.
WITH_TRANSFORMERS = {"checkpoint", "checkpoints", "whole"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WITH_TRANSFORMERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

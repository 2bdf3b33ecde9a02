"""``pytest -m gpu``: every test here is marked, and skipped with a reason where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import machine

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if HERE in item.path.parents]
    reason = machine.missing_for_partitions() if own else None
    for item in own:
        item.add_marker(pytest.mark.gpu)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}"))


@pytest.fixture(scope="session")
def partitions() -> Any:
    """The green contexts of GPU 0."""
    return machine.partitions()


@pytest.fixture(autouse=True)
def settled() -> Any:
    """Each test begins and ends with an idle GPU; what failed asynchronously fails here."""
    import torch

    torch.cuda.synchronize()
    yield
    torch.cuda.synchronize()

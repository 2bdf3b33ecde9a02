"""Engines on the CPU device, for tests: open a checkpoint, serve requests, look at the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexusbench.core.request import Request
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.cpu import Cpu
from nexusbench.models.config import load_model
from nexusbench.testing import serve
from nexusbench.testing._harness import Setting


@contextmanager
def cpu(model: str | Path, argument: str = "", **options: Any) -> Iterator[Cpu]:
    """An open CPU device; fp32 unless told."""
    given = {"dtype": "float32", **options}
    device = Cpu.open(
        argument, load_model(model), DeviceOptions(8, 64, model_name=str(model), **given)
    )
    try:
        yield device
    finally:
        device.close()


def served(
    model: str | Path,
    requests: Sequence[Request],
    scheduler: Any,
    partitioner: str | None = None,
    *,
    argument: str = "",
    observer: Callable[[Any], None] | None = None,
    setting: Setting | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Any, dict[int, list[int]]]:
    """The engine after the run, and what each request got."""
    with cpu(model, argument, seed=seed, **options) as device:
        engine = serve(
            requests, scheduler, partitioner,
            setting=setting, device=device, observer=observer, seed=seed,
        )  # fmt: skip
        return engine, {index: list(tokens) for index, tokens in device.generated().items()}

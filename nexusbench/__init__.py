"""nexusbench: how should prefill and decode share a GPU, and what does each way of scheduling cost?

``nexusbench.run(nexusbench.RunConfig(trace="trace.jsonl"))`` is the whole Python API; names load on
first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexusbench.core.config import EndpointConfig, RunConfig
    from nexusbench.serving.runner import RunResult, run

__all__ = ["EndpointConfig", "RunConfig", "RunResult", "__version__", "run"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    """The public names, loaded or not, for completion in a notebook."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in ("RunConfig", "EndpointConfig"):
        from nexusbench.core import config

        return getattr(config, name)
    if name in ("run", "RunResult"):
        from nexusbench.serving import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'nexusbench' has no attribute '{name}'")

"""The one error of the conformance checks, and how other errors become it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nexusbench.core.errors import (
    EngineStalled,
    InvariantBreach,
    NexusbenchError,
    PlanRefused,
    UsageError,
)


class ConformanceError(NexusbenchError):
    """A plug-in breaks the contract: ``I9: what happened (in which workload)``.

    ``invariant`` is I1 to I11, or ``contract`` for rules that have no number.
    """

    def __init__(self, invariant: str, problem: str, where: str = "") -> None:
        place = f" (workload: {where})" if where else ""
        super().__init__(f"{invariant}: {problem}{place}")
        self.invariant, self.problem, self.where = invariant, problem, where


@contextmanager
def named(where: str) -> Iterator[None]:
    """Turn whatever a plug-in makes the engine raise into a ConformanceError that names ``where``.

    A UsageError passes: it is the caller's mistake, not the plug-in's behaviour.
    """
    try:
        yield
    except ConformanceError as error:
        if error.where:
            raise
        raise ConformanceError(error.invariant, error.problem, where) from error
    except PlanRefused as error:
        raise ConformanceError(
            error.invariant, f"'{error.policy}' {error.problem}", where
        ) from error
    except InvariantBreach as error:
        raise ConformanceError(error.invariant, error.problem, where) from error
    except EngineStalled as error:
        problem = str(error).removeprefix("I10: ")
        raise ConformanceError("I10", f"stalls: {problem}", where) from error
    except UsageError:
        raise
    except Exception as error:
        problem = f"raises {type(error).__name__}: {error}"
        raise ConformanceError("contract", problem, where) from error

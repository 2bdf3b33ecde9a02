"""The one small tree of errors; each carries the exit code that the command line ends with."""

from __future__ import annotations


class NexusbenchError(Exception):
    """A run or a tool failed (exit code 1)."""

    exit_code = 1


class UsageError(NexusbenchError):
    """Something impossible was asked for; the message says what to do instead (exit code 2)."""

    exit_code = 2


class InputError(UsageError):
    """Bad input, located: ``file:line: field 'x': what is wrong. What to do.``"""

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        line: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if file is None else str(file)
        if line is not None:
            where += f":{line}"
        text = f"{where}: " if where else ""
        if field is not None:
            text += f"field '{field}': "
        text += problem
        if hint:
            text += f". {hint}"
        super().__init__(text)
        self.file, self.line, self.field, self.problem, self.hint = file, line, field, problem, hint


class BaselineError(InputError):
    """There is no usable baseline to compare with: missing, broken, of a newer schema (exit code
    5).
    """

    exit_code = 5


class PlanRefused(NexusbenchError):
    """A policy proposed something that the engine's contract forbids; names the invariant."""

    def __init__(self, invariant: str, policy: str, problem: str) -> None:
        super().__init__(f"{invariant}: policy '{policy}' {problem}")
        self.invariant, self.policy, self.problem = invariant, policy, problem


class InvariantBreach(NexusbenchError):
    """One of the invariants of docs/invariants.md does not hold; ``invariant`` is its name
    (I1..I11).
    """

    def __init__(self, invariant: str, problem: str) -> None:
        super().__init__(f"invariant {invariant} broken: {problem}")
        self.invariant, self.problem = invariant, problem


class EngineStalled(NexusbenchError):
    """Work is left, nothing is in flight, no event is due: it would never finish (I10)."""

    invariant = "I10"


class Interrupted(NexusbenchError):
    """The user pressed Ctrl-C, or SIGTERM or SIGHUP arrived; what had finished is kept (exit
    code 130, else 128 and the signal's number).
    """

    exit_code = 130


class PluginFailed(NexusbenchError):
    """A plug-in raised while it served; the message names it and where (exit code 1)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived: everything that Ctrl-C ends in good order ends so then too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class CounterError(NexusbenchError):
    """A source of counters cannot be read, or broke down; the run itself is not touched by it."""

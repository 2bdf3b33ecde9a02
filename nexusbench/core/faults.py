"""Faults of plug-ins, which run in this process: an exception is attributed to the plug-in."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from nexusbench.core.errors import NexusbenchError, PluginFailed

_OURS = "nexusbench."


def fault_of(error: BaseException) -> str:
    """Where and what a plug-in raised, on one line: ``file:line: TypeError: ...``."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}: "
    if isinstance(error, SystemExit):
        return f"{where}it ends the process (SystemExit: {error.code})"
    try:
        text = " ".join(str(error).split())
    except Exception:  # its __str__ raises, too
        text = "without a text"
    return f"{where}{type(error).__name__}: {text}"


def blamed(error: BaseException, parts: Mapping[str, object]) -> PluginFailed | None:
    """The exception that ended a run as the fault of one of its parts; None where it is no part's,
    and for NexusbenchErrors, whose messages name the cause.

    ``parts`` are the objects of the run by their descriptions, such as ``scheduler 'mine'``. The
    innermost frame in a part's own module decides; without one, a part from another package, whose
    return value may be what the engine could not use.
    """
    if isinstance(error, NexusbenchError | KeyboardInterrupt | MemoryError):
        return None
    walked = traceback.walk_tb(error.__traceback__)
    frames = [frame.f_globals.get("__name__") for frame, _ in walked]
    modules = {type(part).__module__: name for name, part in parts.items()}
    for module in reversed(frames):
        if module in modules:
            return PluginFailed(f"{modules[module]} failed: {fault_of(error)}")
    foreign = [n for n, part in parts.items() if not type(part).__module__.startswith(_OURS)]
    if foreign:
        return PluginFailed(f"the run failed with {' and '.join(foreign)}: {fault_of(error)}")
    return None

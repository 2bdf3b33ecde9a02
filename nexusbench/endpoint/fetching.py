"""One request and its answer, before a replay: within a bound of time and of bytes."""

from __future__ import annotations

import selectors
import ssl
from collections.abc import Callable

from nexusbench.core.clock import now_ns
from nexusbench.core.units import NS_PER_S
from nexusbench.endpoint.address import Address
from nexusbench.endpoint.connection import Connection


def fetch(
    address: Address,
    context: ssl.SSLContext | None,
    request: bytes,
    *,
    most_bytes: int,
    deadline_ns: int,
    take: Callable[[int, bytes], bool],
) -> None:
    """Send ``request``; ``take`` gets the status and each piece of the body as it is read, and says
    whether it has enough.

    Raises OSError if there is no connection or it breaks (TimeoutError at ``deadline_ns`` of the
    clock), StreamError for what is no HTTP or longer than ``most_bytes``.
    """
    line = Connection(address, context, now_ns())
    line.most_bytes = most_bytes
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(line.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            _connect(line, selector, deadline_ns)
            if not line.write(request):
                selector.modify(line.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            _listen(line, selector, deadline_ns, take)
    finally:
        line.close()


def _connect(line: Connection, selector: selectors.BaseSelector, deadline_ns: int) -> None:
    while True:
        _wait(selector, deadline_ns)
        events = line.advance()
        selector.modify(line.sock, events or selectors.EVENT_READ)
        if line.ready:
            return


def _listen(
    line: Connection,
    selector: selectors.BaseSelector,
    deadline_ns: int,
    take: Callable[[int, bytes], bool],
) -> None:
    while not line.complete:
        if _wait(selector, deadline_ns) & selectors.EVENT_WRITE and line.write_rest():
            selector.modify(line.sock, selectors.EVENT_READ)
        data = line.read()
        if data is None:
            continue
        if not data:
            if not line.status:
                raise ConnectionError("connection closed before an answer")
            return
        body = line.parse(data)
        if line.status and take(line.status, body):
            return


def _wait(selector: selectors.BaseSelector, deadline_ns: int) -> int:
    """Wait for something to happen, until the deadline; returns the events."""
    left = deadline_ns - now_ns()
    if left <= 0 or not (ready := selector.select(left / NS_PER_S)):
        raise TimeoutError("timed out")
    return ready[0][1]

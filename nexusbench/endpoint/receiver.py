"""The receiving thread: opens connections, reads answers, and says how each request ended."""

from __future__ import annotations

import errno
import selectors
import socket
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial

from nexusbench.core.events import OUTCOMES
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.endpoint.address import Address
from nexusbench.endpoint.connection import ERROR_BYTES, Connection, name_fault
from nexusbench.endpoint.exchange import NOT_YET, Exchange
from nexusbench.endpoint.sayings import error_reason
from nexusbench.endpoint.stream import StreamError
from nexusbench.endpoint.words import Words

_OK = 200
FINISHED, FAILED, CANCELLED = map(OUTCOMES.index, ("finished", "failed", "cancelled"))
# Servers commonly close a connection that has been idle for 2 to 5 s; ours are let go before, so
# that no request is sent on a closing one.
IDLE_NS = 1 * NS_PER_S
_CONNECT_NS = 10 * NS_PER_S
_TICK_NS = 100 * NS_PER_MS
_BACK_OFF_NS = 500 * NS_PER_MS
_OPENING_AT_ONCE = 64


class Receiver:
    """Everything that happens to a request after its first byte has left; one thread, ``run``.

    ``clock`` reads ns of the replay. ``ended`` is called, in this thread, with every exchange that
    has ended. ``words`` makes what a server says fit to be kept. ``timeout_ns`` bounds the
    whole of an answer, and so any silence in it. ``spare`` is how many idle connections there
    should be.
    """

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None,
        clock: Callable[[], int],
        ended: Callable[[Exchange], None],
        timeout_ns: int,
        words: Words,
    ) -> None:
        self._address, self._context, self._clock = address, context, clock
        self._ended, self._timeout_ns, self._words = ended, timeout_ns, words
        self.idle: deque[Connection] = deque()
        self.flying: dict[int, Exchange] = {}  # by index of the request: not ended yet
        self.spare = 2
        self.opened = self.sent_late = 0
        self._inbox: deque[Callable[[], None]] = deque()
        self._waiting: deque[Exchange] = deque()  # for a connection
        self._lines: dict[Connection, None] = {}  # all that are open
        self._opening = 0
        # The clock begins below 0: connections are opened before the first request is due.
        self._no_spares_until = self._next_tick = -(2**62)
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._stopped = False
        for end in (self._bell, self._ear):
            end.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ, None)

    # -- for other threads -------------------------------------------------------------------------

    def launch(self, exchange: Exchange) -> None:
        """Send a request, on a connection that is open if there is one. For the sender's thread."""
        self.flying[exchange.request.index] = exchange
        while True:
            try:
                line = self.idle.pop()
            except IndexError:
                self.call(lambda: self._waiting.append(exchange))
                return
            try:
                self._hand_over(exchange, line)
            except OSError:  # it was closing: nothing has been said yet
                line.exchange = None
                exchange.sent_ns = NOT_YET
                self.call(partial(self._drop, line))
                continue
            return

    def _hand_over(self, exchange: Exchange, line: Connection) -> None:
        """Write a request. Raises OSError.

        It is stamped before, not after: the answer may be here before this thread runs again.
        """
        payload, exchange.payload = exchange.payload, b""
        line.exchange, line.most_bytes = exchange, exchange.most_bytes
        exchange.sent_ns = exchange.heard_ns = self._clock()
        try:
            whole = line.write(payload)
        except OSError:
            exchange.payload = payload
            raise
        if not whole:
            self.call(partial(self._watch, line))
        elif 2 * len(self.idle) < self.spare:
            self.call(_open_more)  # else that would be seen at the next tick

    def cancel(self, exchange: Exchange, reason: str) -> None:
        """The client gives up."""
        self.call(lambda: self._end(exchange, CANCELLED, reason))

    def call(self, action: Callable[[], None]) -> None:
        """Have ``action`` done by the receiving thread, soon."""
        self._inbox.append(action)
        try:
            self._bell.send(b"\0")
        except (BlockingIOError, OSError):
            return  # rung often enough, or closed

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stopped = True
        self.call(_open_more)

    # -- the thread --------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped; then close everything."""
        try:
            while not self._stopped:
                self._turn()
        finally:
            for line in list(self._lines):
                self._drop(line)
            self._selector.close()
            self._bell.close()
            self._ear.close()

    def _turn(self) -> None:
        now = self._clock()
        if now >= self._next_tick:
            self._tick(now)
            self._next_tick = now + _TICK_NS
        self._open_lines(now)
        ready = self._selector.select(max(0, self._next_tick - now) / NS_PER_S)
        # First read everything, so that none is stamped later for the parsing of another.
        arrived: list[tuple[Connection, bytes | OSError | None, int]] = []
        for key, events in ready:
            line = key.data
            if line is None:
                self._listen()
            elif not line.ready or (events & selectors.EVENT_WRITE):
                self._push(line)
            else:
                try:
                    data: bytes | OSError | None = line.read()
                except OSError as error:
                    data = error
                arrived.append((line, data, self._clock()))
        for line, data, time in arrived:
            if line in self._lines and data is not None:
                self._take(line, data, time)
        while self._inbox:
            self._inbox.popleft()()

    def _listen(self) -> None:
        try:
            while self._ear.recv(4096):
                pass
        except BlockingIOError:
            return

    # -- connections -------------------------------------------------------------------------------

    def _open_lines(self, now: int) -> None:
        """As many as wait for one, and as many more as should lie ready."""
        wanted = len(self._waiting) - self._opening
        if now >= self._no_spares_until:
            wanted = max(wanted, len(self._waiting) + self.spare - len(self.idle) - self._opening)
        for _ in range(min(wanted, _OPENING_AT_ONCE)):
            try:
                line = Connection(self._address, self._context, now)
                self._selector.register(
                    line.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, line
                )
            except OSError as error:
                self._no_line(error)
                return
            self._lines[line] = None
            self._opening += 1
            self.opened += 1

    def _push(self, line: Connection) -> None:
        """A connection can be written to: it is open now, or takes the rest of a request."""
        fresh = not line.ready
        try:
            if fresh:
                if events := line.advance():
                    self._selector.modify(line.sock, events, line)
                    return
                self._opening -= 1
                self._offer(line)
            if line.write_rest():
                self._selector.modify(line.sock, selectors.EVENT_READ, line)
        except OSError as error:
            if fresh:
                self._drop(line)
                self._no_line(error)
            else:
                self._break(line, error)

    def _no_line(self, error: OSError) -> None:
        """A connection could not be made: the request that has waited longest fails with it."""
        self._no_spares_until = self._clock() + _BACK_OFF_NS
        if self._waiting:
            self._end(self._waiting.popleft(), FAILED, name_fault(error))

    def _offer(self, line: Connection) -> None:
        """An idle connection takes the request that has waited longest, or lies ready."""
        if not self._waiting:
            self.idle.append(line)
            return
        exchange = self._waiting.popleft()
        self.sent_late += 1
        try:
            self._hand_over(exchange, line)
        except OSError as error:
            self._break(line, error)

    def _watch(self, line: Connection) -> None:
        """Be told when the rest of a request can be written."""
        if line in self._lines and line.exchange is not None:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(line.sock, both, line)

    def _drop(self, line: Connection) -> None:
        if line in self._lines:
            del self._lines[line]
            if not line.ready:
                self._opening -= 1
            self._selector.unregister(line.sock)
            line.close()

    def _break(self, line: Connection, error: OSError) -> None:
        """A connection is gone, and with it what it carried."""
        exchange = line.exchange
        self._drop(line)
        if exchange is not None:
            self._end(exchange, FAILED, name_fault(error))

    # -- answers -----------------------------------------------------------------------------------

    def _take(self, line: Connection, data: bytes | OSError, now: int) -> None:
        """Bytes, the end, or an error of a connection."""
        exchange = line.exchange
        if exchange is None:
            self._take_nobodys(line, data, now)
            return
        if isinstance(data, OSError):
            self._break(line, data)
            return
        exchange.heard_ns = now
        try:
            self._read(line, exchange, data, now)
        except StreamError as error:
            self._finish(line, FAILED, str(error), now)
        except Exception as error:  # one bad answer ends one request, whatever is wrong with it
            self._finish(line, FAILED, f"the answer cannot be read: {type(error).__name__}", now)

    def _read(self, line: Connection, exchange: Exchange, data: bytes, now: int) -> None:
        """Bytes of an answer, empty where it ends. Raises StreamError."""
        body = line.parse(data) if data else b""
        answer = exchange.answer
        if line.status == _OK:
            answer.feed(body, now)
            if line.complete or not data:
                answer.close(now)
                self._finish(line, FINISHED, answer.end(whole=line.complete), now)
            elif answer.done:
                self._finish(line, FINISHED, answer.end(), now)
        elif line.status:
            exchange.error_body += body
            if line.complete or not data or len(exchange.error_body) > ERROR_BYTES:
                raise StreamError(error_reason(line.status, exchange.error_body))
        elif not data:
            raise StreamError("connection closed before an answer")

    def _take_nobodys(self, line: Connection, data: bytes | OSError, now: int) -> None:
        """The last bytes of an answer; or an idle connection was closed by the server, unless the
        sender has just taken it.
        """
        if line.draining:
            try:
                alive = isinstance(data, bytes) and bool(data)
                if alive:
                    line.parse(bytes(data))  # type: ignore[arg-type]
            except StreamError:
                alive = False
            if alive and line.complete and line.keep:
                line.release(now)
                self._offer(line)
            elif line.complete or not alive:
                self._drop(line)
            return
        try:
            self.idle.remove(line)
        except ValueError:
            return
        self._drop(line)

    def _finish(self, line: Connection, outcome: int, reason: str, now: int) -> None:
        """End an exchange; its connection is kept only after a whole answer."""
        exchange = line.exchange
        assert exchange is not None
        again = outcome == FINISHED and line.complete and line.keep
        if again:
            line.release(now)
        elif outcome == FINISHED and not line.complete:
            line.drain(now)
        else:
            self._drop(line)
        self._end(exchange, outcome, reason, now)
        if again:
            self._offer(line)

    def _end(self, exchange: Exchange, outcome: int, reason: str, now: int | None = None) -> None:
        """The one end of an exchange; later ones are ignored."""
        if exchange.outcome != NOT_YET:
            return
        exchange.end_ns = self._clock() if now is None else now
        exchange.outcome, exchange.reason = outcome, self._words.of(reason)
        exchange.request.outcome = outcome
        if outcome == CANCELLED or exchange.sent_ns == NOT_YET:
            for line in [line for line in self._lines if line.exchange is exchange]:
                self._drop(line)
            if exchange in self._waiting:
                self._waiting.remove(exchange)
        # In this order: it is at no moment in neither place.
        self._ended(exchange)
        self.flying.pop(exchange.request.index, None)

    # -- now and then ------------------------------------------------------------------------------

    def _tick(self, now: int) -> None:
        """Give up on answers without an end, and on connections that are slow to open or have lain
        too long.
        """
        for line in list(self._lines):
            exchange = line.exchange
            if line.draining and now - line.used_ns > IDLE_NS:
                self._drop(line)
            elif not line.ready and now - line.opened_ns > min(_CONNECT_NS, self._timeout_ns):
                self._drop(line)
                self._no_line(OSError(errno.ETIMEDOUT, ""))
            elif exchange is not None and 0 <= exchange.sent_ns < now - self._timeout_ns:
                what = "no end within" if exchange.heard_ns > exchange.sent_ns else "no byte for"
                seconds = self._timeout_ns / NS_PER_S
                self._finish(line, FAILED, f"{what} {seconds:g} s (--timeout)", now)
        # The sender takes from the right meanwhile: each is taken out before it is looked at.
        for _ in range(len(self.idle)):
            try:
                line = self.idle.popleft()
            except IndexError:
                return
            if line.used_ns < 0 or now - line.used_ns <= IDLE_NS:
                self.idle.append(line)
            else:
                self._drop(line)


def _open_more() -> None:
    """To be woken is enough: each turn begins with opening connections."""

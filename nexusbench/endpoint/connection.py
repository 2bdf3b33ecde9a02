"""One connection: a socket that never blocks, and the HTTP that comes out of it."""

from __future__ import annotations

import selectors
import socket
import ssl
from contextlib import suppress
from threading import Lock

import httptools

from nexusbench.endpoint.address import Address
from nexusbench.endpoint.exchange import Exchange

_READ = 1 << 18
# The errors of a socket that has nothing to say yet.
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """A connection to the server; ``exchange`` is whose answer it carries, None while it is idle.

    The sender's thread writes the beginning of a request, the receiver's does everything else. TLS
    keeps one state for both directions, hence the lock; plain sockets would do without.
    ``draining``: the exchange has ended, the last bytes of its answer are still to come.
    """

    __slots__ = (
        "_lock", "_pieces", "_rest", "complete", "draining", "exchange", "keep", "opened_ns",
        "parser", "ready", "sock", "status", "used_ns",
    )  # fmt: skip

    def __init__(self, address: Address, context: ssl.SSLContext | None, now: int) -> None:
        """Begin to connect. Raises OSError if not even that can be done."""
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect_ex(address.sockaddr)
            if context is not None:
                sock = context.wrap_socket(
                    sock, server_hostname=address.host, do_handshake_on_connect=False
                )
        except BaseException:
            sock.close()
            raise
        self.sock = sock
        self.exchange: Exchange | None = None
        self.opened_ns, self.used_ns = now, -1
        self.ready = False
        self._lock = Lock()
        self._rest = b""
        self._pieces: list[bytes] = []
        self._fresh()

    def _fresh(self) -> None:
        """Get ready for the next answer."""
        self.parser = httptools.HttpResponseParser(self)
        self.status, self.complete, self.keep, self.draining = 0, False, False, False

    # Called by httptools.

    def on_headers_complete(self) -> None:
        """The status is known."""
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A piece of the body, whatever way it was cut on the wire."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is over; another may follow if the server keeps the connection."""
        self.complete, self.keep = True, self.parser.should_keep_alive()

    # Called by the threads.

    def advance(self) -> int:
        """Get on with connecting, once the socket can be written to or read: 0 if it is ready, else
        the event to wait for. Raises OSError if it cannot be.
        """
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "")
        if isinstance(self.sock, ssl.SSLSocket):
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                return selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                return selectors.EVENT_WRITE
        self.ready = True
        return 0

    def write(self, data: bytes) -> bool:
        """Send ``data``, or as much as goes; True if all went. Raises OSError."""
        with self._lock:
            sent = 0
            with suppress(*_LATER):
                sent = self.sock.send(data)
            self._rest = data[sent:] if sent < len(data) else b""
        return not self._rest

    def write_rest(self) -> bool:
        """Send what :meth:`write` could not; True if nothing is left. Raises OSError."""
        return not self._rest or self.write(self._rest)

    def read(self) -> bytes | None:
        """What has come: None if nothing, empty at the end. Raises OSError."""
        with self._lock:
            try:
                data = self.sock.recv(_READ)
            except _LATER:
                return None
            except ssl.SSLEOFError:
                return b""
            if isinstance(self.sock, ssl.SSLSocket) and data:
                # What TLS has already decrypted, no selector tells of.
                while waiting := self.sock.pending():
                    data += self.sock.recv(waiting)
        return data

    def parse(self, data: bytes) -> bytes:
        """The body in ``data``. Raises httptools.HttpParserError for what is no HTTP."""
        self.parser.feed_data(data)
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def drain(self, now: int) -> None:
        """All that matters has been said; the answer's last bytes are still to come."""
        self.exchange, self.used_ns, self.draining = None, now, True

    def release(self, now: int) -> None:
        """The answer is over: get ready for another request."""
        self.exchange, self.used_ns = None, now
        self._fresh()

    def close(self) -> None:
        """Let go of the socket."""
        self.exchange = None
        self.sock.close()

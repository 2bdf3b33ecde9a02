"""One connection: a socket that never blocks, and the HTTP read from it, within bounds."""

from __future__ import annotations

import errno
import selectors
import socket
import ssl
from contextlib import suppress
from threading import Lock

import httptools

from nexusbench.core.units import KIB
from nexusbench.endpoint.address import Address
from nexusbench.endpoint.exchange import Exchange
from nexusbench.endpoint.stream import Endless, StreamError

_READ = 1 << 18
HEAD_BYTES = 64 * KIB
ERROR_BYTES = 64 * KIB  # of the body of an error; the rest is not waited for
_OK, _SWITCHING = 200, 101
# The errors that have a plain name; others are told in the system's words.
_NAMES = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ETIMEDOUT: "connection timed out",
    errno.EMFILE: "too many open files (raise ulimit -n)",
    errno.ENFILE: "too many open files (raise ulimit -n)",
}
# The errors of a socket that has nothing to say yet.
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """A connection to the server; ``exchange`` is the one whose answer it carries, None while it is
    idle.

    The sender's thread writes the beginning of a request, the receiver's does everything else. TLS
    keeps one state for both directions, hence the lock; plain sockets would do without.
    ``draining``: the exchange has ended, the last bytes of its answer have not been read.
    ``most_bytes``: how long an answer may be, of which ``taken`` were read.
    """

    __slots__ = (
        "_encoding", "_interim", "_lock", "_pieces", "_rest", "complete", "draining", "exchange",
        "keep", "most_bytes", "opened_ns", "parser", "ready", "sock", "status", "taken", "used_ns",
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
        self.most_bytes = 0
        self._lock = Lock()
        self._rest = b""
        self._pieces: list[bytes] = []
        self._fresh()

    def _fresh(self) -> None:
        """Get ready for the next answer."""
        self.parser = httptools.HttpResponseParser(self)
        self.status, self.complete, self.keep, self.draining = 0, False, False, False
        self.taken, self._encoding, self._interim = 0, "", False

    # Called by httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; how the body is packed is all that matters."""
        if name.lower() in (b"content-encoding", b"transfer-encoding") and not self.complete:
            ways = (way.strip() for way in value.decode("latin-1").lower().split(","))
            packed = [way for way in ways if way not in ("", "identity", "chunked")]
            self._encoding = self._encoding or ", ".join(packed)

    def on_headers_complete(self) -> None:
        """The status is known, unless it is one of those that announce another."""
        status = self.parser.get_status_code()
        self._interim = status < _OK and status != _SWITCHING
        if not (self._interim or self.complete):
            self.status = status

    def on_body(self, body: bytes) -> None:
        """A piece of the body, whatever way it was cut on the wire."""
        if not self.complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is over; another may follow if the server keeps the connection."""
        if self._interim:
            self._interim = False
        elif self.complete:
            self.keep = False  # more answers than requests
        else:
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
        """The bytes that can be read: None if there are none, empty at the end. Raises OSError."""
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
        """The body in ``data``. Raises StreamError for what is no HTTP, too long or packed."""
        self.taken += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise StreamError("the answer switches to another protocol") from None
        except httptools.HttpParserError:
            # Trailing bytes after a whole answer are no reason to fail it.
            if not self.complete:
                raise StreamError("garbage: the answer is not HTTP") from None
            self.keep = False
        if not self.status and self.taken > HEAD_BYTES:
            raise Endless(f"headers without an end, longer than {HEAD_BYTES:,} bytes")
        if self.taken > self.most_bytes:
            raise Endless(f"an answer without an end, longer than {self.most_bytes:,} bytes")
        if self._encoding:
            status = "" if self.status in (0, _OK) else f"HTTP {self.status}: "
            raise StreamError(f"{status}a packed answer, which was not asked for: {self._encoding}")
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def drain(self, now: int) -> None:
        """All that is recorded has been read; the answer's last bytes have not."""
        self.exchange, self.used_ns, self.draining = None, now, True
        self.most_bytes = self.taken + HEAD_BYTES

    def release(self, now: int) -> None:
        """The answer is over: get ready for another request."""
        self.exchange, self.used_ns = None, now
        self._fresh()

    def close(self) -> None:
        """Let go of the socket."""
        self.exchange = None
        self.sock.close()


def name_fault(error: OSError) -> str:
    """What went wrong with a connection, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return _NAMES.get(error.errno or 0, "") or error.strerror or str(error) or "connection lost"

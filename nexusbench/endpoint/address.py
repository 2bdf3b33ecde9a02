"""Where a server is: a URL taken apart, and checked before anything is sent."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import msgspec

from nexusbench.core.errors import NexusbenchError, UsageError

_EXAMPLE = "Write http://127.0.0.1:8000/v1"
# The end of a path that names the API itself -> the API.
_ENDINGS = {"/chat/completions": "chat", "/completions": "completions"}
_TRIED = 4  # addresses of a host that are tried for the first that answers
_PORTS = {"http": 80, "https": 443}


class Address(msgspec.Struct, frozen=True):
    """A server: ``base`` is the path that ``/completions`` is added to; ``api`` what the URL named.

    ``sockaddr`` is resolved once, so that no request waits for a name server.
    """

    tls: bool
    host: str
    port: int
    base: str
    api: str | None
    family: int
    sockaddr: tuple[Any, ...]

    @property
    def netloc(self) -> str:
        """Host and port as they stand in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.tls else 'http'}://{self.netloc}{self.base}"


def parse_address(url: str) -> Address:
    """Take ``url`` apart and resolve its host. Raises UsageError for what is no server's URL."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        # Neither the URL nor the error is quoted: they may hold a password.
        raise UsageError(f"--endpoint has no valid host or port. {_EXAMPLE}") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UsageError(f"--endpoint is not an http or https URL with a host. {_EXAMPLE}")
    if port == 0:
        raise UsageError(f"--endpoint: there is no port 0. {_EXAMPLE}")
    if "@" in url or parts.query or parts.fragment:
        raise UsageError(
            "--endpoint holds a user name, a query or a fragment, which would be stored with the "
            "results. Put a key into an environment variable and name that with --api-key-env"
        )
    if any(not 0x20 < ord(letter) < 0x7F for letter in parts.path):
        raise UsageError(f"--endpoint: the path may hold visible ASCII alone. {_EXAMPLE}")
    if not parts.hostname.isprintable():
        raise UsageError(f"--endpoint: the host holds control signs. {_EXAMPLE}")
    base, api = parts.path.rstrip("/"), None
    for ending, name in _ENDINGS.items():
        if base.endswith(ending):
            base, api = base.removesuffix(ending), name
            break
    port = port or _PORTS[parts.scheme]
    family, sockaddr = _resolve(parts.hostname, port)
    return Address(
        parts.scheme == "https", parts.hostname, port, base or "/v1", api, family, sockaddr
    )


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """The first address of ``host`` that takes a connection, else its first; one for all."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NexusbenchError(f"--endpoint: cannot find the host '{host}': {error}") from None
    for family, kind, protocol, _, sockaddr in found[:_TRIED] if len(found) > 1 else []:
        with socket.socket(family, kind, protocol) as trial:
            trial.settimeout(2.0)
            if trial.connect_ex(sockaddr) == 0:
                return int(family), sockaddr
    return int(found[0][0]), found[0][4]

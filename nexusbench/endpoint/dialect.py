"""What is written to a server: the body of a request in the words that this server takes."""

from __future__ import annotations

from typing import Literal

import msgspec

from nexusbench import __version__
from nexusbench.endpoint.address import Address

Api = Literal["completions", "chat"]


class Dialect(msgspec.Struct, frozen=True):
    """What a server was found to accept.

    ``prompt``: token ids or text. ``pinned``: ``ignore_eos`` and ``min_tokens`` beside
    ``max_tokens``, so that an answer has the trace's length. ``usage``: whether it is asked to
    count tokens with every chunk, at the end, or not at all.
    """

    api: Api
    prompt: Literal["ids", "text"]
    pinned: bool
    usage: Literal["chunks", "end", "none"]

    @property
    def path(self) -> str:
        """Below the base of the address."""
        return "/completions" if self.api == "completions" else "/chat/completions"


# The most telling first; a server that refuses one is asked in the words of the next.
_LADDER: tuple[tuple[bool, Literal["chunks", "end", "none"]], ...] = (
    (True, "chunks"),
    (True, "end"),
    (False, "end"),
    (False, "none"),
)


def dialects(api: Api, prompt: Literal["auto", "ids", "text"]) -> list[Dialect]:
    """All ways to ask, best first; chat takes text alone."""
    kinds: list[Literal["ids", "text"]] = ["ids", "text"]
    if api == "chat" or prompt == "text":
        kinds = ["text"]
    elif prompt == "ids":
        kinds = ["ids"]
    return [Dialect(api, kind, pinned, usage) for kind in kinds for pinned, usage in _LADDER]


class Letterhead(msgspec.Struct, frozen=True):
    """What is the same in every request of a replay."""

    address: Address
    model: str
    dialect: Dialect
    key: str = ""  # the secret; never in a repr, a message or a file

    def __repr__(self) -> str:
        return f"Letterhead({self.address.url}, {self.dialect})"

    def body(self, prompt: bytes, max_tokens: int) -> bytes:
        """The JSON of one request; ``prompt`` is ids with commas, or text that needs no escapes."""
        dialect = self.dialect
        fields: dict[str, object] = {
            "model": self.model,
            "stream": True,
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        if dialect.pinned:
            fields |= {"min_tokens": max_tokens, "ignore_eos": True}
        if dialect.usage != "none":
            options = {"include_usage": True}
            if dialect.usage == "chunks":
                options["continuous_usage_stats"] = True
            fields["stream_options"] = options
        head = msgspec.json.encode(fields)[:-1]
        if dialect.api == "chat":
            return head + b',"messages":[{"role":"user","content":"' + prompt + b'"}]}'
        if dialect.prompt == "ids":
            return head + b',"prompt":[' + prompt + b"]}"
        return head + b',"prompt":"' + prompt + b'"}'

    def headers(self) -> dict[str, str]:
        """Headers but for Host and Content-Length."""
        found = {
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": f"nexusbench/{__version__}",
        }
        return found | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def request(self, prompt: bytes, max_tokens: int) -> bytes:
        """One request as it goes over the wire."""
        body = self.body(prompt, max_tokens)
        return self._head("POST", self.dialect.path, len(body)) + body

    def get(self, path: str) -> bytes:
        """A request for a page of the server."""
        return self._head("GET", path)

    def _head(self, method: str, path: str, length: int | None = None) -> bytes:
        lines = [
            f"{method} {self.address.base}{path} HTTP/1.1",
            f"Host: {self.address.netloc}",
            *(f"{name}: {value}" for name, value in self.headers().items()),
        ]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

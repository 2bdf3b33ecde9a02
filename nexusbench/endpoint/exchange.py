"""One request on its way to a server and back."""

from __future__ import annotations

from nexusbench.core.request import Request
from nexusbench.core.units import KIB, MIB
from nexusbench.endpoint.stream import Answer

NOT_YET = -1
# How long an answer may be on the wire, headers and comments included: so much, and so much more
# for each token asked for. Servers send a quarter of a KiB for a token.
_ANSWER_BYTES = 2 * MIB
_TOKEN_BYTES = 8 * KIB


class Exchange:
    """A request, when it was sent, its answer, and how it ended; times in ns of the replay."""

    __slots__ = (
        "answer", "end_ns", "error_body", "heard_ns", "outcome", "payload", "reason", "request",
        "sent_ns",
    )  # fmt: skip

    def __init__(self, request: Request, payload: bytes) -> None:
        self.request, self.payload = request, payload
        self.answer = Answer()
        self.sent_ns = NOT_YET
        self.heard_ns = NOT_YET  # the last sign of life: sent, or heard from
        self.end_ns = NOT_YET
        self.outcome = NOT_YET  # index into OUTCOMES
        self.reason = ""
        self.error_body = b""

    @property
    def most_bytes(self) -> int:
        """How long its answer may be."""
        return answer_bytes(self.request.max_tokens)


def answer_bytes(max_tokens: int) -> int:
    """How long an answer of so many tokens may be on the wire."""
    return _ANSWER_BYTES + _TOKEN_BYTES * max_tokens

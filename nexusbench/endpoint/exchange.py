"""One request on its way to a server and back."""

from __future__ import annotations

from nexusbench.core.request import Request
from nexusbench.endpoint.stream import Answer

NOT_YET = -1


class Exchange:
    """A request, when it was sent, what came back, and how it ended; times in ns of the replay."""

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

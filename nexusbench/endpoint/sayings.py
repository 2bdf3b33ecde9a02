"""What an error of a server says, in whichever of the usual shapes; whole: Words makes it fit."""

from __future__ import annotations

from typing import Any

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Where errors keep their words, the most telling first; one may lie within another.
_FIELDS = (
    "error", "message", "detail", "msg", "error_message", "error_msg", "error_description",
    "reason", "errors", "choices",
)  # fmt: skip
_DEPTH = 4


def message_in(data: bytes) -> str:
    """The words of an error in JSON; empty if it is none."""
    try:
        found = msgspec.json.decode(data)
    except UNREADABLE:
        return ""
    if isinstance(found, str):
        return found
    return _said(found, _DEPTH) if isinstance(found, dict) else ""


def message_of(data: bytes) -> str:
    """The words of an error, or all that there is where these cannot be told."""
    return message_in(data) or data.decode(errors="replace")


def _said(found: Any, depth: int) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, dict) and depth:
        for name in _FIELDS:
            if text := _said(found.get(name), depth - 1):
                return text
        return ""
    if isinstance(found, list) and found and depth:
        return _said(found[0], depth - 1)
    return ""


def error_reason(status: int, body: bytes) -> str:
    """Why a request failed that was not answered with 200."""
    said = message_of(body).strip()
    return f"HTTP {status}" + (f": {said}" if said else "")

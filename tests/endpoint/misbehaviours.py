"""What each way of a server to misbehave leads to; for the tests, and for tests/benchmarks.

    with serving() as base:
        for case in ANSWERS: serve-trace TRACE --endpoint case.url(base) --timeout TIMEOUT_S
        for case in PROBES: the same

Of ANSWERS all requests finish, or all fail, whatever their number; with the exit code 0 or 1, for
``case.reason``. With PROBES the command ends with exit code 1 and ``case.reason`` before any is
sent, and keeps nothing. ``within_s`` bounds the whole command but for the start of the interpreter.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

TIMEOUT_S = 2.0
# Requests of 10 tokens, which have the one way of a server that ``--behaviours`` names.
TRACE = "".join(
    f'{{"timestamp": {20 * index}, "input_length": {20 + index}, "output_length": 10}}\n'
    for index in range(6)
)
_MEMORY = "out of memory"
_GARBAGE = "garbage in the stream"
_ENDLESS = "without an end"
_NUMBERS = count()


class Misbehaviour(NamedTuple):
    """A server's way and what becomes of each request: ``reason`` is part of the reason of its end,
    or of the error that ends the command before any is sent.
    """

    name: str
    options: tuple[str, ...]  # of server.py
    finishes: bool
    reason: str
    within_s: float = 8.0

    def explains(self, said: str) -> bool:
        """``said`` is why its requests end; a busy machine may not get to the bound of bytes."""
        return self.reason in said or (_ENDLESS in self.reason and "no end within" in said)

    def url(self, base: str) -> str:
        """A server of this way, in the process that serves ``base``."""
        words = [*self.options, "--n", f"m{next(_NUMBERS)}"]
        pairs = zip(words[::2], words[1::2], strict=True)
        return f"{base}/as/{urlencode([(name.removeprefix('--'), v) for name, v in pairs])}/v1"


def _answers(reason: str, *names: str, finishes: bool = False) -> list[Misbehaviour]:
    return [Misbehaviour(name, ("--behaviours", name), finishes, reason) for name in names]


ANSWERS = [
    # How it ends.
    *(
        case
        for reason in ("abort", "error", "content_filter", "timeout", "STOP")
        for case in _answers(f"ended by the server: {reason}", f"ends_{reason}")
    ),
    *_answers(
        "stop", "ends_stop", "ends_tool_calls", "ends_function_call", finishes=True
    ),
    *_answers("length", "empty_reasons", "late_end", finishes=True),
    *_answers("the stream ended early", "empty_reason_at_last"),
    *_answers(
        "ended without a token", "done_only", "done_after_empty_chunks", "stops_without_a_token",
        "only_reasons_in_secret",
    ),
    # What it counts.
    *_answers(
        "length", "zero_usage", "zero_usage_until_the_end", "falling_usage", "constant_usage",
        "whole_usage_at_once", "leaping_usage", "rare_usage", "huge_usage", "negative_usage",
        "text_usage", "broken_usage", "nested_usage", "usage_is_a_list",
        "cached_beyond_the_prompt", "cached_negative", "cached_text", "cached_broken",
        "cached_true", "details_are_a_text", "hides_reasoning", "shows_reasoning", finishes=True,
    ),
    # When it comes.
    *_answers("length", "held_back", "held_back_in_pieces", "one_chunk", finishes=True),
    # Errors.
    *_answers(
        f"error in the stream: {_MEMORY}", "event_error", "event_error_in_words", "error_object",
        "error_text", "error_number", "error_nested", "error_flat", "error_flat_in_words",
        "error_detail", "error_object_field", "error_type", "event",
    ),
    *_answers("error in the stream", "event_error_alone", "error_code"),
    *_answers("length", "falsy_errors", finishes=True),
    *_answers(f"HTTP 500: {_MEMORY}", "flat_500"),
    *_answers("HTTP 500: {\"error\": [[[[", "deep_500"),
    *_answers("HTTP 502: <html> <title>Bad gateway</title>", "html_502"),
    *_answers("HTTP 500: ", "bytes_500"),
    *_answers("HTTP 500: red [bold] ok", "steers_500"),
    *_answers("HTTP 503", "empty_503"),
    *_answers("HTTP 302", "redirect"),
    *_answers("HTTP 204", "no_content"),
    *_answers("HTTP 429: too many requests", "busy"),
    *_answers("HTTP 500: the engine is dead", "broken"),
    # No stream, no JSON, no HTTP.
    *_answers("answered without a stream of events", "json_200", "nostream"),
    *_answers(f"answered without a stream of events: {_MEMORY}", "error_200"),
    *_answers(
        _GARBAGE, "garbage", "garbage_utf8", "garbage_html", "wrong_types", "wrong_choice", "deep",
        "deep_error", "deep_usage", "deep_elsewhere",
    ),
    *_answers("a packed answer, which was not asked for: gzip", "packed", "bomb"),
    *_answers("the stream ended early", "too_short", "early", "unfinished"),
    *_answers(
        "garbage: the answer is not HTTP", "not_http", "nothttp", "bad_length", "bad_chunk"
    ),
    *_answers("the answer switches to another protocol", "upgrade"),
    *_answers("length", "announced", "two_answers", finishes=True),
    *_answers("connection reset", "reset"),
    # Without an end.
    *_answers(
        f"an answer {_ENDLESS}, longer than", "endless_comments", "endless_blank_lines",
        "endless_tokens", "endless_extension",
    ),
    *_answers(f"an event {_ENDLESS}", "endless_event", "endless_empty_data", "endless_line"),
    *_answers(
        f"headers {_ENDLESS}", "endless_headers", "endless_header", "endless_status",
        "endless_interim",
    ),
    *_answers("HTTP 500: xxx", "endless_error"),
    *_answers("length", "endless_trailers", "dripping_after_the_end", finishes=True),
    *_answers(
        f"no end within {TIMEOUT_S:g} s (--timeout)", "dripping_comments", "dripping_tokens",
        "dripping_line", "dripping_headers", "dripping_extension", "dripping_error", "stall",
    ),
    *_answers(f"no byte for {TIMEOUT_S:g} s (--timeout)", "silent"),
]  # fmt: skip

# The server tells the key that it was given. ``***`` stands in its place.
TELLING = [
    *_answers("wrong key ***", "tells_key", "tells_key_shortened"),
    *_answers(
        "HTTP 500", "tells_key_at_the_cut", "tells_key_at_the_old_cut", "tells_key_far",
        "tells_key_behind_a_body", "tells_key_quoted", "tells_key_escaped", "tells_key_in_html",
        "tells_key_as_base64", "tells_key_as_hex", "tells_key_in_capitals", "tells_key_broken_up",
        "tells_key_on_lines",
    ),
    *_answers("error in the stream: ***", "tells_key_in_the_stream"),
    *_answers(f"{_GARBAGE}: 'nonsense ***", "tells_key_as_garbage"),
    *_answers("ended by the server: key *** expired", "tells_key_as_a_reason"),
]  # fmt: skip


def _probes(reason: str, *names: str, option: str = "--probes") -> list[Misbehaviour]:
    return [Misbehaviour(f"{option[2:]} {name}", (option, name), False, reason) for name in names]


PROBES = [
    *_probes(
        f"an answer {_ENDLESS}", "endless_comments", "endless_blank_lines", "endless_extension"
    ),
    *_probes(
        f"gives no answer: an event {_ENDLESS}", "endless_event", "endless_empty_data",
        "endless_line",
    ),
    *_probes(f"headers {_ENDLESS}", "endless_headers", "endless_header", "endless_interim"),
    *_probes("HTTP 500: xxx", "endless_error"),
    *_probes(
        f"no end within {TIMEOUT_S:g} s", "dripping_comments", "dripping_tokens", "dripping_line",
        "dripping_headers", "dripping_extension", "dripping_error", "silent",
    ),
    *_probes(_GARBAGE, "deep", "garbage_utf8"),
    *_probes("error in the stream: out of memory", "event_error", "error_flat"),
    *_probes("the answer is not HTTP", "not_http", "bad_chunk"),
    *_probes("a packed answer", "bomb"),
    *_probes("answers HTTP 302", "redirect"),
    *_probes(f"an answer {_ENDLESS}", "endless_comments", "endless_extension", option="--list"),
    *_probes(f"headers {_ENDLESS}", "endless_header", option="--list"),
    *_probes(
        f"no end within {TIMEOUT_S:g} s", "dripping_comments", "dripping_headers", "silent",
        option="--list",
    ),
    *_probes(
        "names no model", "json_200", "no_content", "redirect", "lists_deep", "lists_nothing",
        "lists_numbers", option="--list",
    ),
    *_probes("has 5000 models: m0, m1, m2, m3", "lists_many", option="--list"),
    *_probes("HTTP 500: out of memory", "flat_500", option="--list"),
]  # fmt: skip
# Answers to a probe that are bad, but tell what the server takes: the replay counts what becomes
# of its requests.
PROBED_ALL_THE_SAME = ("ends_abort", "done_only", "zero_usage", "held_back", "endless_trailers")


@contextmanager
def serving() -> Iterator[str]:
    """A process that is all of these servers; gives the URL that a case's ``url`` wants."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()

"""What a server says is shown and stored without the key and without control signs."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.errors import UsageError
from nexusbench.endpoint.address import parse_address
from nexusbench.endpoint.dialect import Dialect, Letterhead
from nexusbench.endpoint.probing import Wish
from nexusbench.endpoint.words import SHOWN, Words
from tests.examples import examples

KEY = "sk-very/secret+key==42"


def spelled(key: str) -> list[str]:
    once = quote(key, safe="")
    return [
        key,
        key.upper(),
        once,
        quote(once, safe=""),
        once.lower(),
        json.dumps(key),
        json.dumps(json.dumps(key)),
        key.replace("/", "\\/"),
        "".join(f"\\u{ord(sign):04x}" for sign in key),
        "".join(f"\\x{ord(sign):02x}" for sign in key),
        "".join(f"&#{ord(sign)};" for sign in key),
        "".join(f"&#x{ord(sign):x};" for sign in key),
        html.escape(key),
        key.encode().hex(),
        *(base64.b64encode(f"{user}:{key}".encode()).decode() for user in ("", "a", "ab", "abc")),
        base64.urlsafe_b64encode(key.encode()).decode(),
        "\x1b[31m".join(key),
        "\u200b".join(key),
        "\n".join(key),
        "-".join(key),
        key[::-1],
        "/".join(f"{ord(sign):02X}" for sign in key),
        " ".join(f"0x{ord(sign):02x}" for sign in key),
        "".join(f"\\{ord(sign):03o}" for sign in key),
        "".join(f"\\U{ord(sign):08x}" for sign in key),
        "".join(f"\\u{{{ord(sign):x}}}" for sign in key),
        "".join(chr(ord(sign) + 0xFEE0) for sign in key),  # of full width
    ]


@pytest.mark.parametrize("text", spelled(KEY))
def test_the_key_is_hidden_however_it_is_spelled(text: str) -> None:
    shown = Words(KEY).of(f"Bearer {text} is wrong", 10_000)
    assert shown.startswith("Bearer ")
    assert shown.endswith(" is wrong")
    assert "***" in shown
    for start in range(0, len(text) - 8, 4):
        assert text[start : start + 8] not in shown


@given(st.integers(0, 300), st.integers(6, len(KEY)), st.integers(1, 300))
@settings(max_examples=examples(100), deadline=None)
def test_no_cut_leaves_a_part_of_the_key(before: int, length: int, most: int) -> None:
    """Wherever it stands, however much the server has cut off it, wherever we cut."""
    shown = Words(KEY).of("x" * before + KEY[:length], most)
    assert "sk-v" not in shown
    assert len(shown) <= most + 3


def test_what_is_cut_first_takes_no_part_of_the_key_along() -> None:
    for before in range((1 << 14) - len(KEY) - 2, (1 << 14) + 2, 3):
        assert "sk" not in Words(KEY).of(" " * before + KEY)


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("", "all is well", "all is well"),
        ("EMPTY", "the key EMPTY is wrong", "the key *** is wrong"),
        ("ab", "ab is too short", "*** is too short"),
        ("a b c d e f", "key a b c d e f!", "key ***!"),
    ],
)
def test_keys_of_any_kind(key: str, text: str, shown: str) -> None:
    assert Words(key).of(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07words", "words"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x9b31mred", "red"),
        ("a\rb\nc\td\x00e\x7ff", "a b c d e f"),
        ("to\u202eleft\u2066and\u200bfro\ufeff", "to left and fro"),
        ("\ud800 half", "half"),
        ("line\u2028end\u2029of\x85text", "line end of text"),
        ("über 東京 ok", "über 東京 ok"),
        ("x" * 500, "x" * SHOWN + "..."),
    ],
)
def test_control_signs_are_taken_out(text: str, shown: str) -> None:
    assert Words().of(text) == shown
    assert Words(KEY).of(text) == shown


def test_no_repr_holds_the_key() -> None:
    address = parse_address("http://127.0.0.1:8000")
    letterhead = Letterhead(address, "m", Dialect("chat", "text", False, "none"), KEY)
    for thing in (Words(KEY), letterhead, Wish("m", None, "auto", 99, 1.0, KEY)):
        assert "sk-" not in f"{thing!r} {thing}"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:se/cret@host/v1", "http://me:secret@host:x/", "http://secret@127.0.0.1:8000",
        "http://127.0.0.1:8000/v1@secret", "http://127.0.0.1:secret/v1", "http://[secret/v1",
        "http://host\u2100secret/", "http://127.0.0.1:8000/v1#secret", "http://\x1b[31msecret/v1",
        "http://secret:0/",
    ],
)  # fmt: skip
def test_a_url_that_may_hold_a_password_is_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()

"""What a server says, made fit to be shown and stored: without the key, on one line, not too long.

The key is taken out before anything is cut, so that no cut can leave a part of it; control signs
are taken out after, so that none of them can hide it.
"""

from __future__ import annotations

import re
import sys
from base64 import b64encode, urlsafe_b64encode
from html import unescape
from itertools import pairwise
from typing import NamedTuple
from unicodedata import category, normalize

SHOWN = 120  # characters of a reason
_MOST_READ = 1 << 14  # characters of a saying that are looked at
# So many signs of a key in a row are a part of it: servers repeat keys shortened.
_PART = 6
_HIDDEN = "***"
_ESCAPE = re.compile(
    r"%[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\[^a-zA-Z0-9\s]"
    r"|\\u\{[0-9a-fA-F]{1,6}\}|\\U[0-9a-fA-F]{8}|\\[0-3][0-7]{2}|0[xX][0-9a-fA-F]{2}"
    r"|&#[0-9]{1,7};|&#[xX][0-9a-fA-F]{1,6};|&[a-zA-Z]{2,8};"
)
# Escape sequences of terminals: colours and cursors, titles and links.
_STEERING = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
)
_DEPTH = 3  # how often an escape may itself be escaped


class _Sign(NamedTuple):
    """A character, and where its spelling begins and ends."""

    char: str
    start: int
    end: int


class Words:
    """Makes sayings of a server fit to be shown; ``key`` is the secret that none may hold."""

    def __init__(self, key: str = "") -> None:
        plain = "".join(key.split()).lower()
        self._margin = 8 * len(key)  # no spelling of the key is longer
        self._parts: dict[int, set[str]] = {}
        spellings = [plain, plain[::-1], *_encodings(key)] if plain else []
        # Without its punctuation too: what stands between the signs of a key hides it no more.
        bare = [text for text in map(_letters, spellings) if len(text) >= _PART]
        for spelling in (*spellings, *bare):
            size = min(_PART, len(spelling))
            found = self._parts.setdefault(size, set())
            found |= {spelling[i : i + size] for i in range(len(spelling) - size + 1)}

    def __repr__(self) -> str:
        return "Words()"

    def of(self, text: str, most: int = SHOWN) -> str:
        """``text`` without the key, without control signs, on one line of at most ``most``."""
        head = self._without_key(_STEERING.sub("", text[:_MOST_READ]))
        if len(text) > _MOST_READ:
            # What was cut off here may have been the rest of the key.
            head = head[: max(0, len(head) - self._margin)]
        line = one_line(head)
        return line if len(line) <= most else line[:most].rstrip() + "..."

    def _without_key(self, text: str) -> str:
        """``text`` with every part of the key replaced, however it is spelled."""
        if not self._parts:
            return text
        covered = [False] * len(text)
        signs = [_Sign(char, place, place + 1) for place, char in enumerate(text)]
        for _ in range(_DEPTH):
            # A key may be broken by signs that are not shown.
            signs = [sign for sign in signs if not (sign.char.isspace() or _unseen(sign.char))]
            self._cover(signs, covered)
            decoded = _decode(signs)
            if len(decoded) == len(signs):
                break
            signs = decoded
        else:
            self._cover(signs, covered)
        return _mask(text, covered)

    def _cover(self, signs: list[_Sign], covered: list[bool]) -> None:
        """Mark every part of the key, as it stands and between whatever punctuation."""
        self._mark(signs, covered)
        self._mark([sign for sign in signs if _lower(sign.char).isalnum()], covered)

    def _mark(self, signs: list[_Sign], covered: list[bool]) -> None:
        plain = "".join([_lower(sign.char) for sign in signs])
        for size, parts in self._parts.items():
            for place in range(len(plain) - size + 1):
                if plain[place : place + size] in parts:
                    first, last = signs[place].start, signs[place + size - 1].end
                    covered[first:last] = [True] * (last - first)


def one_line(text: str) -> str:
    """``text`` without control signs, line ends and runs of blanks."""
    text = _STEERING.sub("", text)
    return " ".join("".join([" " if _unseen(char) else char for char in text]).split())


def _unseen(char: str) -> bool:
    """It steers a terminal or the direction of a text, or cannot be written at all."""
    return not char.isprintable() and category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _lower(char: str) -> str:
    """In lower case and of ordinary width where that is one character."""
    small = (char if char.isascii() else normalize("NFKC", char)).lower()
    return small if len(small) == 1 else char


def _letters(text: str) -> str:
    """Letters and digits alone."""
    return "".join([char for char in text if char.isalnum()])


def _encodings(key: str) -> list[str]:
    """The key as base64, wherever in it the key begins, and as hexadecimal digits; lower case."""
    data = key.encode()
    found = [data.hex()]
    for encode in (b64encode, urlsafe_b64encode):
        for before in range(3):
            text = encode(b"\0" * before + data).decode().rstrip("=")
            # The signs at the ends depend on what stands beside the key.
            found.append(text[(0, 2, 3)[before] : len(text) - 1].lower())
    return [text for text in found if len(text) >= _PART]


def _decode(signs: list[_Sign]) -> list[_Sign]:
    """With each escape as the character that it stands for."""
    text = "".join([sign.char for sign in signs])
    found: list[_Sign] = []
    done = 0
    for match in _ESCAPE.finditer(text):
        char = _meant(match[0])
        if len(char) != 1:
            continue
        found += signs[done : match.start()]
        found.append(_Sign(char, signs[match.start()].start, signs[match.end() - 1].end))
        done = match.end()
    return [*found, *signs[done:]]


def _meant(escape: str) -> str:
    """The character of one escape; the escape itself where it is none."""
    if escape[0] == "&":
        return unescape(escape)
    if escape[1:].isdigit() and escape[0] == "\\" and len(escape) == 4:
        return chr(int(escape[1:], 8))
    digits = (escape[1:] if escape[0] == "%" else escape[2:]).strip("{}")
    number = int(digits, 16) if digits else ord(escape[1])
    return chr(number) if number <= sys.maxunicode else escape


def _mask(text: str, covered: list[bool]) -> str:
    """``text`` with every covered stretch hidden."""
    edges = [0, *(i for i in range(1, len(text)) if covered[i] != covered[i - 1]), len(text)]
    return "".join(
        _HIDDEN if covered[start] else text[start:end]
        for start, end in pairwise(edges)
        if end > start
    )

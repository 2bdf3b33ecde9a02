"""Words of users, files and servers as a screen, a shell and a file system may have them.

A terminal obeys the control characters that it is sent. Names of requests, models and files, and
what a server says, are untrusted: nothing in them may move the cursor, change a colour, begin a
line of its own or turn the direction of reading.
"""

from __future__ import annotations

import os
import re
import shlex
import unicodedata

# Escape sequences of colours and movements; without the first character the rest is noise.
_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
_SUSPECT = re.compile(r"[^ -~\n\t]")
_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
# Controls, invisible signs that turn or join text, and what ends a line or a paragraph.
_HIDDEN = ("Cc", "Cf", "Zl", "Zp")
_LONGEST = 100  # bytes of one part of a folder's name: a file system takes 255 for the whole


def printable(text: str) -> str:
    """``text`` without control characters; its newlines and tabs stay."""
    if text.isprintable():
        return text
    return _SUSPECT.sub(_shown, _SEQUENCE.sub("", text))


def _shown(found: re.Match[str]) -> str:
    sign = found[0]
    kind = unicodedata.category(sign)
    if kind in _HIDDEN:
        return ""
    return "\ufffd" if kind == "Cs" else sign  # half a character: of a file name that is no UTF-8


def one_line(text: object) -> str:
    """``text`` as one line: line breaks and tabs are blanks, other control characters are gone."""
    return printable(_BREAKS.sub(" ", str(text)))


def shell_words(*words: object) -> str:
    """Words as a POSIX shell reads them back; with control characters, as bash and zsh do."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: object) -> str:
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    plain = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(plain)}'"


def folder_name(text: str) -> str:
    """``text`` as a part of a folder's name: letters, digits and what no shell minds."""
    name = "".join(sign if sign.isalnum() or sign in "-_.+=@," else "-" for sign in one_line(text))
    return name.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore")

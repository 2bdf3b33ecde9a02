"""Words from elsewhere on a screen, in a shell and as a folder."""

from __future__ import annotations

import os
import subprocess

import pytest

from nexusbench.core.printable import folder_name, one_line, printable, shell_words
from tests.examples import sample

HOSTILE = "a\x1b[31mb\x1b]0;t\x07\x9b2J\u202ec\u2066\x00\x7f\u2028d"


def test_nothing_in_a_text_controls_a_terminal() -> None:
    assert printable(HOSTILE) == "ab]0;tcd"
    assert one_line("a\nerror: b\r\tc\u2028d\x85e") == "a error: b c d e"
    assert printable("two\nlines\tand \u00e9\u6f22\u00a0\U0001f600") == (
        "two\nlines\tand \u00e9\u6f22\u00a0\U0001f600"
    )
    assert printable("half \udce9") == "half \ufffd"


@pytest.mark.parametrize(
    "sign", sample([*range(32), *range(127, 160), 0x200B, 0x202E, 0x2067, 0xFEFF], 8)
)
def test_every_control_character_is_dropped(sign: int) -> None:
    shown = one_line(f"x{chr(sign)}\u00e9")
    assert shown in ("x\u00e9", "x \u00e9")


@pytest.mark.parametrize(
    "word", ["plain", "a b", "it's", "$HOME;`ls`", "-x", "a\nb", HOSTILE.replace("\x00", ""), ""]
)
def test_a_shell_reads_back_what_was_printed(word: str) -> None:
    line = shell_words("printf", "%s", word)
    assert printable(line) == line
    read = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert read == os.fsencode(word)


def test_names_of_folders_are_plain_and_short() -> None:
    assert folder_name("tr\x1b[1mace \u202ex; rm -rf '/") == "trace-x--rm--rf---"
    assert folder_name("sim:l20+l20") == "sim-l20+l20"
    assert len(folder_name("\u00e9" * 400).encode()) == 100

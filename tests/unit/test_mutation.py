"""The runner of mutants: what it changes, and that its names outlast edits elsewhere."""

from __future__ import annotations

import ast
import textwrap

import pytest

from tests.mutation.mutants import PACKAGE, mutants_of, mutated
from tests.mutation.probes import MARKS, Marker
from tests.mutation.runner import equivalents, sample

FILE = PACKAGE / "kv" / "made_up.py"


def changes(text):
    text = textwrap.dedent(text)
    return {
        (mutant.kind, ast.unparse(mutated(mutant, text)).splitlines()[-1].strip())
        for mutant in mutants_of("kv", FILE, text)
    }


@pytest.mark.parametrize(
    ("text", "kind", "after"),
    [
        ("x = a < b", "compare", "x = a <= b"),
        ("x = a <= b < c", "compare", "x = a <= b <= c"),
        ("x = a is None", "compare", "x = a is not None"),
        ("x = a + b", "arithmetic", "x = a - b"),
        ("x += b", "arithmetic", "x -= b"),
        ("x = -a", "arithmetic", "x = a"),
        ("x = f(3)", "constant", "x = f(4)"),
        ("x = f(3)", "constant", "x = f(2)"),
        ("x = f(1000)", "constant", "x = f(500)"),
        ("x = f(True)", "constant", "x = f(False)"),
        ("x: int = 3", "default", "x: int = 4"),
        ("if a:\n    f()", "remove", "pass"),
        ("while a:\n    break", "loop", "continue"),
        ("def f():\n    return a", "return", "return None"),
        ("def f():\n    return a", "return", "return 0"),
        ("x = a and b", "boolean", "x = a or b"),
        ("x = not a", "negation", "x = a"),
        ("x = a if b else c", "condition", "x = c if b else a"),
        ("x = [a for a in b if a]", "condition", "x = [a for a in b]"),
        ("x = min(a, b)", "minmax", "x = max(a, b)"),
        ("x = sorted(a, key=f)", "order", "x = sorted(a)"),
        ("x = sorted(a)", "order", "x = list(a)"),
        ("a.sort(reverse=b)", "order", "a.sort()"),
        ("x = f(a, b)", "arguments", "x = f(b, a)"),
        ("x.y = 1", "remove", "pass"),
        ("f(a)", "remove", "pass"),
        ("if a:\n    b\n    raise E(3)", "remove", "pass"),
    ],
)
def test_it_changes(text, kind, after):
    assert (kind, after) in changes(text)


@pytest.mark.parametrize(
    "text",
    [
        "'A docstring of 3 words.'",
        "import a",
        "assert a < b",
        "x = f'{a:3}'",
        "def f(a: Literal[3]) -> Literal[4]:\n    pass",
        "def __repr__(self):\n    return 3",
        "if TYPE_CHECKING:\n    x = 3",
        "x = zip(a, strict=True)",
        "def f():\n    raise NotImplementedError",
        "def f():\n    raise NotImplementedError('fit')",
    ],
)
def test_it_leaves_alone(text):
    assert not changes(text)


def test_a_name_outlasts_edits_elsewhere():
    first = "def f(a):\n    return a < 3\n"
    before = {m.key for m in mutants_of("kv", FILE, first)}
    edited = "import os\n\n\ndef g(a):\n    return a < 3\n\n\n" + first
    after = {m.key for m in mutants_of("kv", FILE, edited) if m.function == "f"}
    assert before == after
    twice = first + "    return a < 3\n"
    keys = [m.key for m in mutants_of("kv", FILE, twice)]
    assert before < set(keys)
    assert len(keys) == len(set(keys)), "the same statement twice in a function is two statements"


def test_a_sample_holds_one_mutant_of_a_statement_and_no_equivalent_one():
    chosen = sample(1, 30, ["kv"], {})
    assert len({mutant.place for mutant in chosen}) == 30
    without = sample(1, 30, ["kv"], {chosen[0].key: "the same"})
    assert chosen[0] not in without
    assert len(without) == 30
    assert sample(2, 30, ["kv"], {}) != chosen


def test_marks_say_which_blocks_ran():
    text = "'Doc.'\nfrom __future__ import annotations\ndef f(a):\n    'Doc.'\n    if a:\n" + (
        "        return 1\n    return 2\n"
    )
    marker = Marker(0)
    code = compile(marker.tree(text), "made_up", "exec")
    marks = bytearray(marker.next)
    space = {MARKS: marks}
    exec(code, space)
    marks[:] = bytes(len(marks))
    space["f"](True)
    assert marks[marker.of_line[6]]
    assert not marks[marker.of_line[7]]


def test_equivalents_have_reasons():
    assert all(len(why.split()) >= 4 for why in equivalents().values())

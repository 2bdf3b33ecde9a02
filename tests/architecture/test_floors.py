"""The shape of the code: floors, sizes, docstrings, no clock above the devices."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nexusbench"

# Imports go strictly down; packages on one floor never import each other.
FLOORS = {
    "core": 0, "data": 0,
    "kv": 1, "kernels": 1, "profiles": 1, "workloads": 1, "metrics": 1, "results": 1, "counters": 1,
    "costs": 2, "models": 2, "physics": 2, "planning": 2, "comparison": 2,
    "policies": 3,
    "schedulers": 4, "partitioners": 4, "devices": 4,
    "engine": 5, "profiling": 5, "endpoint": 5,
    "serving": 6,
    "experiments": 7, "report": 7, "gates": 7, "testing": 7,
    "cli": 8, "__main__": 9,
}  # fmt: skip
FILE_LINES, FUNCTION_LINES, SCHEDULER_LINES = 400, 60, 149
CLOCKS = {
    ("time", "time"), ("time", "time_ns"), ("time", "perf_counter"), ("time", "perf_counter_ns"),
    ("time", "monotonic"), ("time", "monotonic_ns"), ("time", "process_time"), ("time", "sleep"),
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def nodes(path):
    return tuple(ast.walk(tree(path)))


def name(path):
    return str(path.relative_to(ROOT))


def home(path):
    """The package, or module of the composition root, that a file belongs to ('' for the top)."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(path):
    """(line, first component below nexusbench) of every import, TYPE_CHECKING ones too."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                pytest.fail(f"{name(path)}:{node.lineno}: write absolute imports")
            modules = [node.module or ""]
            if node.module == "nexusbench":
                modules = [f"nexusbench.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            top, _, rest = module.partition(".")
            if top == "nexusbench" and rest:
                yield node.lineno, rest.split(".")[0]


def test_every_package_has_a_floor():
    homes = {home(path) for path in FILES} - {""}
    assert homes <= set(FLOORS), f"give {homes - set(FLOORS)} a floor, in docs and here"


def problems(check, paths=FILES):
    """What a check has to say of all files, each problem on a line of its own."""
    return "\n".join(f"{name(path)}{problem}" for path in paths for problem in check(path))


def climbing(path):
    mine = home(path)
    if not mine:
        return  # nexusbench/__init__.py only names the public API, lazily
    for line, theirs in imported(path):
        if theirs == mine or theirs in ("__version__",):
            continue
        if FLOORS[theirs] >= FLOORS[mine]:
            yield f":{line}: {mine} (floor {FLOORS[mine]}) imports {theirs} ({FLOORS[theirs]})"


def test_imports_go_strictly_down():
    assert not problems(climbing)


def oversized(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    is_policy = path.parent.name == "schedulers" and not path.name.startswith("_")
    most = SCHEDULER_LINES if is_policy else FILE_LINES
    if lines > most:
        yield f" has {lines} lines, at most {most}"
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The signature of a command is the list of its flags, which no reader follows.
            start = node.body[0].lineno if home(path) == "cli" else node.lineno
            long = (node.end_lineno or 0) - start + 1
            if long > FUNCTION_LINES:
                yield f":{node.lineno}: {node.name} has {long} lines, at most {FUNCTION_LINES}"


def test_sizes():
    assert not problems(oversized)


def unexplained(path):
    if not ast.get_docstring(tree(path)):
        yield " has no docstring"
    for node in tree(path).body:
        public = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            yield f":{node.lineno}: {node.name} has no docstring"


def test_docstrings():
    assert not problems(unexplained)


# One module reads the clock. What decides or computes the times of a simulated run never asks it.
CLOCK = "nexusbench/core/clock.py"
WITHOUT_CLOCK = (
    "kv", "profiles", "workloads", "metrics", "results", "costs", "models", "physics", "planning",
    "comparison", "policies", "schedulers", "partitioners", "engine", "report", "gates", "testing",
)  # fmt: skip


def reading_the_clock(path):
    for node in nodes(path):
        if isinstance(node, ast.Import) and "time" in [alias.name for alias in node.names]:
            yield f":{node.lineno} imports the clock"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield f":{node.lineno} imports the clock"
        asked = isinstance(node, ast.ImportFrom) and node.module == "nexusbench.core.clock"
        if asked and (home(path) in WITHOUT_CLOCK or path.stem == "sim"):
            yield f":{node.lineno} asks the clock"
        if isinstance(node, ast.Attribute):
            owner = node.value
            last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if (last, node.attr) in CLOCKS:
                yield f":{node.lineno} reads the clock"


def test_the_clock_is_read_in_one_module():
    assert not problems(reading_the_clock, [path for path in FILES if name(path) != CLOCK])


def reaching_in(path):
    """Imports of what another room keeps to itself: a module or a name that begins with _."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nexusbench."):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            private = [part for part in parts if part.startswith("_") and part[:2] != "__"]
            if private and parts[1] != home(path):
                yield f":{node.lineno}: {private[0]} is private to {parts[1]}"


def test_rooms_keep_their_private_modules():
    assert not problems(reaching_in)


def without_a_purpose(path):
    for part in path.relative_to(PACKAGE).with_suffix("").parts:
        if part.strip("_") in ("utils", "util", "common", "helpers", "misc"):
            yield f": {part} says nothing"
    for node in nodes(path):
        manager = isinstance(node, ast.ClassDef) and node.name.endswith("Manager")
        if manager and node.name != "KVCacheManager":
            yield f":{node.lineno}: {node.name}"


def test_no_rooms_without_a_purpose():
    assert not problems(without_a_purpose)


@pytest.mark.parametrize(
    ("check", "where", "text", "says"),
    [
        (climbing, "core/x.py", "import os\nfrom nexusbench.kv import pool", ":2: core (floor 0)"),
        (climbing, "kv/x.py", "from nexusbench import costs", ":1: kv (floor 1) imports costs"),
        (oversized, "kv/x.py", "\n" * 401, "has 401 lines, at most 400"),
        (oversized, "schedulers/x.py", "\n" * 150, "has 150 lines, at most 149"),
        (oversized, "kv/x.py", "def f():" + "\n" * 60 + " pass", ":1: f has 61 lines, at most 60"),
        (unexplained, "kv/x.py", "import os", "x.py has no docstring"),
        (unexplained, "kv/x.py", "'A.'\nclass B: pass", ":2: B has no docstring"),
        (reading_the_clock, "kv/x.py", "import time", ":1 imports the clock"),
        (reading_the_clock, "kv/x.py", "from time import sleep", ":1 imports the clock"),
        (reading_the_clock, "kv/x.py", "a.time.sleep(1)", ":1 reads the clock"),
        (reading_the_clock, "kv/x.py", "from nexusbench.core.clock import now_ns", ":1 asks"),
        (reading_the_clock, "devices/sim.py", "from nexusbench.core.clock import sleep", ":1 asks"),
        (reaching_in, "kv/x.py", "from nexusbench.costs._fit import a", ":1: _fit is private to"),
        (reaching_in, "kv/x.py", "from nexusbench.costs.base import _a", ":1: _a is private to"),
        (without_a_purpose, "kv/_utils.py", "", ": _utils says nothing"),
        (without_a_purpose, "kv/x.py", "class PoolManager: pass", ":1: PoolManager"),
    ],
)
def test_each_check_can_fail(monkeypatch, tmp_path, check, where, text, says):
    path = tmp_path / "nexusbench" / where
    path.parent.mkdir(parents=True)
    path.write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "nexusbench")
    assert says in problems(check, [path])


# numpy does the same as plain arithmetic, element by element, in these; math has no rounding in
# those.
EXACT_ARRAY = ("array", "asarray", "maximum", "minimum", "broadcast_to", "float64", "where")
EXACT_MATH = ("isfinite", "isnan", "nan", "inf", "floor", "ceil", "isqrt", "gcd")
ROUNDING_MODULES = ("cmath", "scipy", "statistics", "torch")
ROUNDING_NAMES = ("sum", "pow", "fsum", "complex")
ROUNDING_METHODS = ("sum", "mean", "prod", "dot", "cumsum", "std", "var", "__pow__", "gauss",
                    "normalvariate", "expovariate")  # fmt: skip


def deciding(node):
    """The nodes that run while serving: fits run once, and leave their numbers in a profile."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name.strip("_").startswith("fit"):
            continue
        yield child
        yield from deciding(child)


def exact_files():
    """Truth and belief: what times a simulated launch, what predicts one, what both count."""
    rooms = [PACKAGE / room for room in ("physics", "profiles", "costs", "policies")]
    others = ("devices/sim.py", "serving/following.py", "core/work.py")
    found = [path for room in rooms for path in room.glob("*.py") if "fit" not in path.stem]
    return sorted([*found, *(PACKAGE / other for other in others)])


def rounded(path):
    """Calls and operators whose last bit depends on the machine or the Python."""
    for node in deciding(tree(path)):
        where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in ROUNDING_NAMES:
                yield f"{where}: write the loop"
            if isinstance(called, ast.Attribute) and called.attr in ROUNDING_METHODS:
                yield f"{where}: write the loop"
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Pow):
            whole = isinstance(node, ast.BinOp) and all(
                isinstance(side, ast.Constant) and isinstance(side.value, int)
                for side in (node.left, node.right)
            )
            if not whole:
                yield f"{where}: write the product"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = {"np": EXACT_ARRAY, "numpy": EXACT_ARRAY, "math": EXACT_MATH}
            if node.attr not in allowed.get(node.value.id, (node.attr,)):
                yield f"{where}: plain arithmetic only"
        if isinstance(node, ast.Import):
            for one in node.names:
                renamed = one.name == "math" and one.asname
                if renamed or one.name.partition(".")[0] in ROUNDING_MODULES:
                    yield f"{where}: plain arithmetic only"
        if isinstance(node, ast.ImportFrom) and node.module:
            allowed = {"math": EXACT_MATH, "numpy": EXACT_ARRAY}.get(node.module, ())
            suspect = node.module.partition(".")[0] in (*ROUNDING_MODULES, "math", "numpy")
            if suspect and any(one.name not in allowed for one in node.names):
                yield f"{where}: plain arithmetic only"


@pytest.mark.parametrize("path", exact_files(), ids=name)
def test_truth_and_belief_use_plain_arithmetic(path):
    """I6: what differs between machines or Pythons may not decide a split or a time.

    ``sum`` compensates floats from Python 3.12 on; exp, log and powers differ between C libraries.
    """
    assert not list(rounded(path))


@pytest.mark.parametrize(
    "line",
    [
        "x = sum([0.1] * 3)", "x = a ** 2", "x **= 0.5", "x = math.exp(1)", "x = math.fsum([a])",
        "from math import log", "import math as m", "from statistics import mean", "import torch",
        "x = a.sum()", "x = pow(2, 0.5)", "x = np.exp(a)", "from numpy import power",
        "x = rng.gauss(0, 1)",
    ],
)  # fmt: skip
def test_rounding_is_seen(monkeypatch, tmp_path, line):
    path = tmp_path / "made.py"
    path.write_text(f"import math\nimport numpy as np\n\n\ndef work():\n    {line}\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(rounded(path))


def test_exact_functions_are_allowed(monkeypatch, tmp_path):
    path = tmp_path / "made.py"
    path.write_text("import math\nx = math.isfinite(2.0) and 10**9 and math.ceil(0.5)\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert not list(rounded(path))

"""The cases: which command reads what file, and what flags, names and variables can hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.hostile.damage import CONTROL, Damage, damages

_SERVE = "serve-trace {trace} --device sim:l20 --scheduler vllm --no-save --no-progress"
_SIM = "--device sim:l20 --scheduler vllm --no-save --no-progress"
_ONE = "--model qwen2.5-3b"
_PROFILED = f"serve-trace t.jsonl {_SIM} {_ONE}"
_RESUME = f"profile --device sim:l20 {_ONE} --quick -o prof --no-progress"
_TABLE = f"serve-trace t.jsonl {_SIM} --device sim:rtx4090"
_FIT = "validate fit rtx4090 table --family gemm --evaluations 20"
_PERF = "vllm/1.0/{}_perf.parquet"
_REPRODUCE = "reproduce paper --specs specs --quick -o out --jobs 1 --cache cache --no-progress"
_SEARCH = "--device sim:l20 --goodput ttft:500 --num-prompts 6 --jobs 1 --cache cache --no-progress"
# command, kind of file, the file that is spoilt, the command line that reads it, its weight
TARGETS: tuple[tuple[str, str, str, int], ...] = (
    ("trace, JSON lines", "t.jsonl", _SERVE.format(trace="t.jsonl"), 3),
    ("trace, JSON lines", "mooncake.jsonl", "trace show mooncake.jsonl", 3),
    ("trace, CSV", "azure.csv", "trace show azure.csv", 2),
    ("trace, CSV", "burstgpt.csv", "trace convert burstgpt.csv out.jsonl", 2),
    ("trace, packed", "t.jsonl.gz", "trace show t.jsonl.gz", 1),
    ("workload spec", "w.toml", "trace make w.toml -o out.jsonl", 3),
    ("GPU", "gpu.toml", f"serve-trace t.jsonl {_SIM} --device sim:gpu.toml", 3),
    ("model", "model/config.json", f"serve-trace t.jsonl {_SIM} --model model", 3),
    ("kernel table", "table/dense.csv", "validate kernels rtx4090 table", 1),
    ("kernel table", "table/attention.csv", "validate kernels rtx4090 table", 1),
    ("kernel table", "table/per_sequence.csv", f"{_TABLE} --kernel-table table", 1),
    ("kernel table", "table/meta.yaml", _FIT, 1),
    ("kernel table", "vidur.csv", "validate kernels a100 vidur.csv", 2),
    ("partitions", "over_sms.csv", "validate partitions h100 over_sms.csv", 2),
    ("partitions", "prof/partitions.csv", "validate partitions l20 prof/partitions.csv", 1),
    ("partitions", "prof/points.jsonl", "validate partitions l20 prof", 1),
    ("kernel table", f"perf/gemm/{_PERF.format('gemm')}", "validate kernels h100 perf", 2),
    (
        "kernel table",
        f"perf/attention/{_PERF.format('context_attention')}",
        "validate kernels h100 perf",
        2,
    ),
    ("load test", "bench.json", "validate import bench.json out", 3),
    ("recording", "recording/requests.jsonl", "validate run recording --device sim:l20", 2),
    ("recording", "recording/meta.json", "validate run recording --device sim:l20", 2),
    ("recording", "recording/timeseries.csv", "validate run recording --device sim:l20", 2),
    ("manifest", "results/vllm/manifest.json", "compare vllm nexus", 4),
    ("manifest", "results/vllm/manifest.json", "explain vllm", 2),
    ("manifest", "results/nexus/manifest.json", "timeline nexus -o out.json", 2),
    ("manifest", "results/nexus/manifest.json", "report nexus vllm -o out.html", 2),
    ("manifest", "results/nexus/manifest.json", "gate baseline save nexus -o out.json", 2),
    ("manifest", "results/vllm/manifest.json", "gate check vllm --baseline base.json", 2),
    ("manifest", "results/vllm/manifest.json", "rerun vllm --no-progress", 2),
    ("summary", "results/vllm/summary.json", "compare vllm nexus", 3),
    ("summary", "results/vllm/summary.json", "gate check vllm --baseline base.json", 2),
    ("event table", "results/nexus/requests.parquet", "compare nexus --goodput ttft:500", 1),
    *(
        ("event table", f"results/nexus/events/{table}-00000.parquet", command, 1)
        for table, command in (
            ("arrived", "explain nexus"),
            ("admitted", "explain nexus -r 3"),
            ("submitted", "timeline nexus -o out.json"),
            ("chunk", "compare nexus --goodput tbt:50"),
            ("step_done", "report nexus -o out.html"),
            ("token", "compare nexus --goodput tbt:50"),
            ("repartitioned", "timeline nexus -o out.json"),
            ("ended", "compare nexus"),
        )
    ),
    ("baseline", "base.json", "gate check vllm nexus --baseline base.json", 3),
    ("baseline", "base.json", "gate baseline save vllm -o base.json --update", 2),
    ("baseline", "base.json", "gate baseline save vllm -o base.json --append", 1),
    ("gate spec", "gate.toml", "gate check --spec gate.toml --no-progress", 2),
    ("sweep spec", "sweep.toml", "sweep sweep.toml -o out --dry-run", 3),
    ("map spec", "map.toml", "pays map.toml -o out --dry-run", 3),
    ("experiment", "specs/paper/fig9.toml", _REPRODUCE, 2),
    ("profile", "prof/profile.json", f"{_PROFILED} --scheduler nexus --profile prof", 3),
    ("profile", "prof/profile.json", "profile show prof", 2),
    ("profile", "prof/points.jsonl", "report prof -o out.html", 1),
    ("profile", "prof/sweep.json", _RESUME, 1),
    ("profile", "prof/profile.json", f"profile check prof --device sim:l20 {_ONE}", 1),
    ("profile", "prof/profile.json", f"{_PROFILED} --device sim:prof", 1),
)

# Command lines that work, to which one hostile flag, name or variable is added.
BASES: dict[str, str] = {
    "serve-trace": _SERVE.format(trace="t.jsonl"),
    "compare": "compare vllm nexus",
    "rerun": "rerun vllm --no-progress",
    "explain": "explain vllm",
    "report": "report vllm -o out.html",
    "timeline": "timeline vllm -o out.json",
    "regret": "regret t.jsonl --device sim:l20 --no-progress --num-prompts 6",
    "sweep": "sweep sweep.toml -o out --dry-run --no-progress",
    "capacity": f"capacity t.jsonl {_SEARCH} --scheduler vllm --seeds 1 --precision 0.5",
    "advise": f"advise t.jsonl {_SEARCH} --effort 30 --scheduler vllm",
    "reproduce": _REPRODUCE,
    "pays": "pays map.toml -o out --dry-run --no-progress",
    "check-model": "check-model model",
    "list": "list schedulers",
    "doctor": "doctor --no-speed",
    "trace make": "trace make w.toml -o out.jsonl",
    "trace show": "trace show t.jsonl",
    "trace convert": "trace convert azure.csv out.jsonl",
    "profile show": "profile show prof",
    "profile check": f"profile check prof --device sim:l20 {_ONE}",
    "profile paper": f"profile paper --device sim:l20 {_ONE} --trace t.jsonl",
    "validate kernels": "validate kernels rtx4090 table",
    "validate partitions": "validate partitions h100 over_sms.csv",
    "validate run": "validate run recording --device sim:l20",
    "validate import": "validate import bench.json out",
    "validate fit": _FIT,
    "gate check": "gate check vllm --baseline base.json",
    "gate baseline save": "gate baseline save vllm -o out.json",
}
VALUES = (
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "nan",
    "inf",
    "1e308",
    "1e-300",
    "-0.0",
    "9" * 30,
    "9223372036854775808",
    CONTROL,
    "x",
    "a" * 10_000,
    "../../x",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "%s%n",
    "é\u202e",
    "x:y:z=,,",
    "-",
    "--",
    "@",
    "[",
    "'",
    "a\nb",
    "ttft:0",
    "ttft:nan,tbt:1e999",
    "sim:",
    "sim:nothing",
    "vllm:order=",
    "nexus:beta=1e308",
    "t.jsonl",
    "results",
    "1,2,,",
    "0:0",
    "9:1",
    "http://[::1",
    "\udcff",
    "true",
    "null",
    "1_000",
    "٣",
    "{}",
    "gemm:5",
    ":",
    "=",
    "1e3",
    "0x10",
)
VARIABLES = tuple(
    {name: value}
    for name, values in (
        ("COLUMNS", ("0", "-5", "x", "1", "1000000", "")),
        ("LINES", ("0", "x")),
        ("TERM", ("", "dumb", CONTROL)),
        ("LC_ALL", ("C", "nothing.UTF-8")),
        ("LANG", ("C",)),
        ("NO_COLOR", ("1",)),
        ("HOME", ("/nothing", "")),
        ("TMPDIR", ("/nothing",)),
        ("CUDA_VISIBLE_DEVICES", ("x", "-1", "99")),
        ("PYTHONIOENCODING", ("ascii",)),
        ("XDG_CACHE_HOME", ("/dev/null",)),
        ("TZ", ("Nothing/Nowhere",)),
        ("OPENAI_API_KEY", (CONTROL, "é\n")),
    )
    for value in values
)


class Left(NamedTuple):
    """What a command left: its exit code and its words."""

    code: int
    out: str
    err: str


class Case(NamedTuple):
    """One bad input: ``spoilt`` is the file that a damage is done to; ``check`` says what else is
    wrong with what it left.
    """

    id: str
    command: str
    kind: str
    arguments: tuple[str, ...]
    spoilt: str = ""
    damage: Damage | None = None
    variables: dict[str, str] = {}
    check: Callable[[Left], str] | None = None

    @property
    def what(self) -> str:
        """What is bad about it."""
        if self.damage is not None:
            return f"{self.spoilt}: {self.damage.name}"
        return repr(self.variables) if self.variables else repr(self.arguments)[:200]


def options_of(command: str) -> list[str]:
    """The options of a command that take a value."""
    import typer

    from nexusbench.cli.main import app

    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    return [
        max(parameter.opts, key=len)
        for parameter in found.params
        if parameter.param_type_name == "option" and not parameter.is_flag
    ]


def make_cases(material: Path, seed: int, count: int) -> list[Case]:
    """About ``count`` cases: three in five of files, the rest of flags, names and variables."""
    made = [*_of_files(material, seed, count * 3 // 5)]
    names = [*_of_names(), *_of_variables()]
    flags = [*_of_flags(seed, max(0, count - len(made) - len(names)))]
    return [*_undamaged(), *made, *names, *flags]


def _undamaged() -> Iterator[Case]:
    """Every command line as it is, for one that fails anyway shows nothing."""
    lines = dict.fromkeys([*BASES.values(), *(line for _, _, line, _ in TARGETS)])
    for number, line in enumerate(lines):
        words = tuple(line.split())
        if words[0] != "check-model":  # which needs weights
            yield Case(f"g{number}", _command(words), "nothing", words, check=_served)


def _served(left: Left) -> str:
    return "" if left.code == 0 else f"fails without any damage, exit code {left.code}"


def _of_files(material: Path, seed: int, count: int) -> Iterator[Case]:
    total = sum(weight for *_, weight in TARGETS)
    for number, (kind, file, line, weight) in enumerate(TARGETS):
        words = tuple(line.split())
        command = _command(words)
        draw = random.Random(f"{seed} {number}")
        share = -(-count * weight // total)
        for place, damage in enumerate(damages(material / file, draw, share)):
            yield Case(f"f{number}-{place}", command, kind, words, file, damage)


def _command(words: tuple[str, ...]) -> str:
    return max((name for name in (*BASES, "profile") if " ".join(words).startswith(name)), key=len)


def _of_names() -> Iterator[Case]:
    """A hostile word in the place of every positional argument."""
    for number, (command, line) in enumerate(BASES.items()):
        words = line.split()
        place = len(command.split())
        if place >= len(words) or words[place].startswith("-"):
            continue
        for which, value in enumerate(VALUES):
            if which % 4 == number % 4 and not value.startswith("-"):
                changed = (*words[:place], value, *words[place + 1 :])
                yield Case(f"n{number}-{which}", command, "name", changed)


def _of_variables() -> Iterator[Case]:
    lines = ("serve-trace", "compare", "explain", "report", "list", "doctor")
    for number, variables in enumerate(VARIABLES):
        for which, command in enumerate(lines):
            if (number + which) % 2 == 0:
                words = tuple(BASES[command].split())
                yield Case(f"v{number}-{which}", command, "variable", words, variables=variables)


def _of_flags(seed: int, count: int) -> Iterator[Case]:
    """Options in turn, each with values drawn for it; those of long searches with fewer."""
    pairs = [(command, option) for command in BASES for option in options_of(command)]
    long = {"capacity": 3, "advise": 3, "reproduce": 2, "pays": 2, "regret": 3}
    kept = [pair for n, pair in enumerate(pairs) if n % long.get(pair[0], 1) == 0]
    for number in range(count):
        command, option = kept[number % len(kept)]
        value = random.Random(f"{seed} {number}").choice(VALUES)
        words = (*BASES[command].split(), option, value)
        yield Case(f"o{number}", command, "flag", words)

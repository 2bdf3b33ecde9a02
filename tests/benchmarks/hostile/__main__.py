"""Bad inputs of every kind for every command, each in a forked process; what is not refused well.

    python -m tests.benchmarks.hostile --cases 2500 --jobs 2
    python -m tests.benchmarks.hostile --case f12-7

A case fails that shows a traceback, "unexpected" or a control character, that takes more than 10 s
or 1 GiB, that dies of a signal, that ends with an exit code which ``nexusbench --help`` does not
list, that accepts a file which has nothing left to read, or refuses one without its name, or in
other words than one line of a bounded length. Every command line is also run undamaged, and must
succeed. Seconds are those in which a case did not wait for a core; one that took too long is tried
once more alone. The same seed makes the same cases.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pkgutil
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

# Before numpy is imported: a forked process has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.benchmarks.hostile.cases import Case, Left, make_cases
from tests.benchmarks.hostile.damage import clean, copy_material
from tests.benchmarks.hostile.material import build
from tests.benchmarks.hostile.servers import server_cases

EXIT_CODES = {0, 1, 2, 3, 4, 5, 129, 130, 143}
MOST_S, MOST_BYTES, MOST_LETTERS = 10.0, 2**30, 2000
_ADDRESS_SPACE = 5 * 2**29  # so that what is endless ends; the bound is on what is resident
_PART = re.compile(r" failed: \S+\.py:\d+: ")  # how plug-ins are named; there are only ours here
_IMPORTED = (
    "cli", "comparison", "costs", "experiments", "gates", "metrics", "partitioners", "report",
    "results", "schedulers", "workloads",
)  # fmt: skip
_LIBRARIES = ("rich.table", "jinja2", "pandas", "pydantic", "pyarrow.dataset")
_LEFT_OUT = ("NEXUSBENCH_DEBUG", "OPENAI_API_KEY")


class Ended(NamedTuple):
    """How a case ended."""

    code: int
    signal: int
    seconds: float
    resident: int
    out: str
    err: str


class Running(NamedTuple):
    """A case that runs."""

    case: Case
    folder: Path
    began: float


def start(case: Case, material: Path, scratch: Path) -> tuple[int, Running]:
    """Fork a process for a case, in a copy of the material."""
    folder = scratch / case.id
    copy_material(material, folder)
    if case.damage is not None:
        case.damage.spoil(folder / case.spoilt)
    process = os.fork()
    if process == 0:
        _be_the_case(case, folder)
    return process, Running(case, folder, time.monotonic())


def _be_the_case(case: Case, folder: Path) -> None:
    """The child: its own streams, folder and variables, then the command line. Never returns."""
    code = 99
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        for number, name, flags in (
            (0, "/dev/null", os.O_RDONLY),
            (1, "out.txt", 0),
            (2, "err.txt", 0),
        ):
            opened = os.open(name, flags or os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(opened, number)
        for name in _LEFT_OUT:
            os.environ.pop(name, None)
        os.environ.update({"COLUMNS": "100", **case.variables})
        if case.variables:  # some are read where an interpreter begins
            os.execv(sys.executable, [sys.executable, "-m", "nexusbench", *case.arguments])
        encoding = case.variables.get("PYTHONIOENCODING", "utf-8")
        streams = [os.fdopen(n, "w", encoding=encoding, errors="replace") for n in (1, 2)]
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), *streams
        from nexusbench.cli.main import main

        code = main(list(case.arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _spent(process: int, running: Running) -> float:
    """Seconds since a case began, less those in which it waited for a core: on a busy machine they
    are another's.
    """
    waited = 0.0
    with suppress(OSError, IndexError, ValueError):
        waited = int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    return time.monotonic() - running.began - waited


def finish(running: Running, status: int, usage: resource.struct_rusage, seconds: float) -> Ended:
    """What a case left behind; its folder is removed."""
    texts = []
    for name in ("out.txt", "err.txt"):
        file = running.folder / name
        texts.append(
            file.read_bytes()[:10_000_000].decode("utf-8", "replace") if file.exists() else ""
        )
    shutil.rmtree(running.folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    return Ended(max(code, -1), max(0, -code), seconds, usage.ru_maxrss * 1024, texts[0], texts[1])


def faults_of(case: Case, ended: Ended) -> list[str]:
    """What is wrong with how a case ended; nothing if all is well."""
    both = ended.out + ended.err
    found = []
    if "Traceback (most recent call last)" in both:
        found.append("traceback")
    if "unexpected " in ended.err:
        found.append("unexpected")
    if _PART.search(ended.err):
        found.append("a part of ours raised")
    if not (clean(ended.out) and clean(ended.err)):
        found.append("control character")
    if "Warning:" in ended.err:
        found.append("a library's warning")
    if ended.signal:
        found.append(f"signal {ended.signal}")
    elif ended.code not in EXIT_CODES:
        found.append(f"exit code {ended.code}")
    if ended.seconds > MOST_S:
        found.append(f"{ended.seconds:.0f} s")
    if ended.resident > MOST_BYTES:
        found.append(f"{ended.resident / 2**20:,.0f} MiB")
    if case.check is not None and (wrong := case.check(Left(ended.code, ended.out, ended.err))):
        found.append(wrong)
    if case.damage is not None:
        # A summary is computed again, a baseline that is not there is begun, curves are optional.
        renewed = case.kind == "summary" or case.command == "gate baseline save"
        renewed |= case.spoilt.endswith("timeseries.csv") and case.damage.name == "missing"
        if case.damage.whole and ended.code == 0 and not renewed:
            found.append("accepted")
        spoilt = Path(case.spoilt)
        names = (spoilt.name.partition(".")[0], *spoilt.parent.parts[-1:])
        if ended.code in (1, 2, 5) and not any(name in both for name in names):
            found.append("not located")
    if ended.code in (2, 5):
        # A gate's verdict is no error; it is one line too.
        errors = [line for line in ended.err.splitlines() if line.startswith(("error: ", "gate: "))]
        if len(errors) != 1:
            found.append(f"{len(errors)} errors")
        elif len(errors[0]) > MOST_LETTERS:
            found.append(f"an error of {len(errors[0]):,} characters")
    return found


def run_all(cases: list[Case], material: Path, scratch: Path, jobs: int) -> dict[str, Ended]:
    """Every case, ``jobs`` at a time; what took too long once more, alone."""
    ended = _run(cases, material, scratch, jobs, quiet=False)
    late = [case for case in cases if ended[case.id].seconds > MOST_S]
    return ended | _run(late, material, scratch, 1, quiet=True)


def _run(
    cases: list[Case], material: Path, scratch: Path, jobs: int, *, quiet: bool
) -> dict[str, Ended]:
    waiting, active = list(reversed(cases)), {}
    ended: dict[str, Ended] = {}
    while waiting or active:
        while waiting and len(active) < jobs:
            process, running = start(waiting.pop(), material, scratch)
            active[process] = running
        over = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if over is not None and over.si_pid not in active:
            os.waitpid(over.si_pid, 0)
            continue
        if over is not None:
            running = active.pop(over.si_pid)
            seconds = _spent(over.si_pid, running)  # while the kernel still knows
            _, status, usage = os.wait4(over.si_pid, 0)
            ended[running.case.id] = finish(running, status, usage, seconds)
            if not quiet:
                _tell(running.case, ended[running.case.id], len(ended), len(cases))
            continue
        for late, running in active.items():
            if _spent(late, running) > MOST_S + 2:
                os.killpg(late, signal.SIGKILL)
        time.sleep(0.01)
    return ended


def _tell(case: Case, one: Ended, count: int, total: int) -> None:
    """Progress, and what failed, at once."""
    if count % 250 == 0:
        print(f"{count:,} of {total:,}", file=sys.stderr, flush=True)
    if faults := faults_of(case, one):
        line = f"{case.id} {case.command}: {', '.join(faults)}: {case.what!a:.120}"
        print(line, file=sys.stderr, flush=True)


def build_material(folder: Path) -> None:
    """Good inputs, made by processes of their own: this one stays free to fork."""

    def call(arguments: list[str]) -> int:
        process = os.fork()
        if process == 0:
            code = 99
            try:
                os.chdir(folder)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                from nexusbench.cli.main import main

                code = main(list(arguments))
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    folder.mkdir()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            build(folder, call)
            code = 0
        except BaseException as error:
            print(f"no material: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise SystemExit("no material could be made")


def preload() -> None:
    """What cases would import, each for itself; torch is left to those that need it."""
    import nexusbench.devices.sim
    import nexusbench.serving.runner  # noqa: F401

    for name in _LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    for name in _IMPORTED:
        package = importlib.import_module(f"nexusbench.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("plugin"):
                importlib.import_module(module.name)
    # Nothing that is there already is looked at again by a child's collector of garbage.
    gc.collect()
    gc.freeze()


def show(cases: list[Case], ended: dict[str, Ended], seconds: float) -> int:
    """The table, then every case that failed; the number of those."""
    table: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    failed = []
    for case in cases:
        one, faults = ended[case.id], faults_of(case, ended[case.id])
        row = table[case.command, case.kind.partition(" ")[0] if case.check else case.kind]
        row[0] += 1
        row[1] += one.code == 0
        row[2] += one.code != 0
        row[3] += bool(faults)
        if faults:
            failed.append((case, one, faults))
    head = ("command", "what is bad", "cases", "served", "refused", "FAILED")
    print("{:<20} {:<20} {:>6} {:>7} {:>8} {:>7}".format(*head))
    for (command, kind), row in sorted(table.items()):
        print(f"{command:<20} {kind:<20} {row[0]:>6} {row[1]:>7} {row[2]:>8} {row[3]:>7}")
    slowest = max(ended.values(), key=lambda one: one.seconds).seconds
    largest = max(ended.values(), key=lambda one: one.resident).resident / 2**20
    print(
        f"{len(cases):,} cases in {seconds:,.0f} s, {len(failed)} failed; the slowest took "
        f"{slowest:.1f} s, the largest {largest:,.0f} MiB"
    )
    for case, one, faults in failed:
        tail = (one.err.strip() or one.out.strip())[-220:]
        print(
            f"\n{case.id}  {case.command}  {case.kind}: {', '.join(faults)}\n  {case.what!a:.300}"
        )
        print(f"  exit {one.code}: {tail!a}")
        print(f"  again: python -m tests.benchmarks.hostile --case {case.id}")
    return len(failed)


def main() -> int:
    """Make the cases, run them, and say what failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.hostile", description=__doc__)
    parser.add_argument("--cases", type=int, default=2500, help="about how many (2500)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", action="append", default=[], help="only this one (repeatable)")
    parser.add_argument("--after", help="only those that come after this one, to go on with")
    parser.add_argument(
        "--only", default="", help="only commands and kinds that contain one of WORD,WORD"
    )
    asked = parser.parse_args()
    began = time.monotonic()
    preload()
    with tempfile.TemporaryDirectory(prefix="hostile-") as place, ExitStack() as stack:
        material, scratch = Path(place) / "material", Path(place) / "scratch"
        scratch.mkdir()
        build_material(material)
        servers = stack.enter_context(server_cases(material))
        cases = [*make_cases(material, asked.seed, asked.cases), *servers]
        if asked.case:
            cases = [case for case in cases if case.id in asked.case]
        if asked.after:
            cases = cases[[case.id for case in cases].index(asked.after) + 1 :]
        if asked.only:
            words = asked.only.split(",")
            cases = [c for c in cases if any(w in f"{c.command}: {c.kind}" for w in words)]
        if not cases:
            print("no such case", file=sys.stderr)
            return 2
        ended = run_all(cases, material, scratch, asked.jobs)
    if asked.case:
        for case in cases:
            one = ended[case.id]
            print(f"{case.id}: {case.what!a}\n$ nexusbench {' '.join(case.arguments)!a}")
            print(f"{one.out}{one.err}")
    return 1 if show(cases, ended, time.monotonic() - began) else 0


if __name__ == "__main__":
    sys.exit(main())

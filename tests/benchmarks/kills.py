"""Kills and full disks at random moments: ``python -m tests.benchmarks.kills [EACH SEED NAME]``.

Each of serve-trace (simulated, and on the CPU with real tokens), sweep, profile, capacity and
report runs EACH (5) times under each of three faults, all at moments drawn with SEED (0): kill -9,
SIGTERM, and a disk that is full after a random share of what the command writes. Moments are
shares of the processor time that the command takes in all, so that a busy machine moves none. The
disk is a small tmpfs where one can be mounted; elsewhere no file may grow beyond a random size
(RLIMIT_FSIZE). NAME is the beginning of the one command to strike.

A case is right if the exit code says what happened, no traceback is shown, everything that was
finished by then can be read, and the same command, called again with room, ends as one that nothing
ever stopped: the same event log, table, points, facts, capacities, page, or tokens. Exits with 1 if
a case is not. About two minutes for each of EACH on two quiet cores.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from nexusbench.core.errors import NexusbenchError
from nexusbench.core.events import SCHEMA
from nexusbench.experiments.cells import SweepCell
from nexusbench.experiments.probe import Probe
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import summarise
from nexusbench.results.reader import RunReader, list_runs

REPOSITORY = Path(__file__).parents[2]
FAULTS = ("kill -9", "SIGTERM", "full disk")
LIMIT_S = 180.0  # a command that takes longer than this hangs
HUNG = 999
EARLY = 0.2  # share of the kills that strike before anything is written
SWEEP = """
[base]
trace = "trace.jsonl"
device = "sim:l20"
model = "qwen2.5-3b"
[grid]
scheduler = ["nexus", "vllm", "sglang"]
seed = "0..4"
rate = [2.0, 4.0, 8.0]
"""


class Whole(NamedTuple):
    """A command that nothing stopped: its folder, stdout, processor seconds to its end and to its
    first file, and the bytes that it wrote.
    """

    folder: Path
    out: str
    seconds: float
    begins: float
    bytes: int


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Subject(NamedTuple):
    """A command, and what of it must be there: ``finished`` counts what can be read of a folder
    (and raises where something cannot), ``equal`` compares a folder that was completed.
    """

    name: str
    command: tuple[str, ...]
    prepare: Callable[[Path], None]
    finished: Callable[[Path], int]
    equal: Callable[[Path, str, Whole], bool]


class Case(NamedTuple):
    """One fault met by one command."""

    struck: bool  # while it ran: it may have been over already
    finished: int
    lost_s: float  # since the last time that something was written, for kills
    problem: str


def write_trace(folder: Path, count: int, gap_ms: float, output: int) -> None:
    lines = (
        json.dumps({"timestamp": gap_ms * i, "input_length": 60 + 90 * (i % 5),
                    "output_length": output + i % 7})
        for i in range(count)
    )  # fmt: skip
    (folder / "trace.jsonl").write_text("\n".join(lines) + "\n")


# What is left of a command, and whether it is whole ---------------------------------------------


def runs_finished(folder: Path) -> int:
    """Requests that ended in any run; every run can be read and summarised."""
    total = 0
    for name in list_runs(folder / "out"):
        run = RunEvents.from_reader(RunReader(name, folder / "out"))
        summarise(run)
        total += int((run.outcome >= 0).sum())
    return total


def prefixes(folder: Path, whole: Path) -> bool:
    """Every stored run is the beginning of the whole one: rows of equal simulations are equal."""
    known = {policy_of(name): RunReader(name, whole / "out") for name in list_runs(whole / "out")}
    for name in list_runs(folder / "out"):
        reader, other = RunReader(name, folder / "out"), known[policy_of(name)]
        for table in SCHEMA:
            rows, all_rows = reader.table(table), other.table(table)
            for column, values in rows.items():
                if not np.array_equal(values, all_rows[column][: len(values)]):
                    return False
    return True


def policy_of(run: str) -> str:
    return next(word for word in ("vllm", "sglang", "nexus") if f"-{word}-" in run)


def complete_runs(folder: Path) -> dict[str, RunReader]:
    readers = [RunReader(name, folder / "out") for name in list_runs(folder / "out")]
    return {policy_of(reader.path.name): reader for reader in readers if reader.complete}


def runs_equal(folder: Path, out: str, whole: Whole) -> bool:
    made, asked = complete_runs(folder), complete_runs(whole.folder)
    digests = {name: reader.manifest.event_digest for name, reader in made.items()}
    return prefixes(folder, whole.folder) and digests == {
        name: reader.manifest.event_digest for name, reader in asked.items()
    }


def tokens_equal(folder: Path, out: str, whole: Whole) -> bool:
    """Real tokens: those of each request that ended are the same in every run, stopped or not."""
    asked = complete_runs(whole.folder)["vllm"].tokens()
    for name in list_runs(folder / "out"):
        reader = RunReader(name, folder / "out")
        run = RunEvents.from_reader(reader)
        if any(asked[request] != made for request, made in reader.tokens().items()):
            return False
        ended = np.flatnonzero(run.outcome == 0).tolist()
        if any(run.num_output_tokens[request] != len(asked[request]) for request in ended):
            return False
    return len(complete_runs(folder)["vllm"].tokens()) == len(asked)


def files_finished(pattern: str, kind: type) -> Callable[[Path], int]:
    decode = msgspec.json.decode if kind is SweepCell else msgspec.msgpack.decode

    def count(folder: Path) -> int:
        found = list((folder / "out").glob(pattern))
        for file in found:
            decode(file.read_bytes(), type=kind)
        return len(found)

    return count


def sweep_equal(folder: Path, out: str, whole: Whole) -> bool:
    return same_file(folder, whole, "table.parquet")


def capacity_equal(folder: Path, out: str, whole: Whole) -> bool:
    return found_of(json.loads(out)) == found_of(json.loads(whole.out))


def found_of(document: object) -> object:
    """A capacity without what it says of which probes were there before."""
    if isinstance(document, dict):
        kept = ("kept_before", "probes_kept")
        return {key: found_of(value) for key, value in document.items() if key not in kept}
    return [found_of(item) for item in document] if isinstance(document, list) else document


def points_finished(folder: Path) -> int:
    file = folder / "out" / "profile" / "points.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    for line in lines:  # what follows the last newline was being written
        json.loads(line)
    return len(lines)


def profile_equal(folder: Path, out: str, whole: Whole) -> bool:
    one, other = (
        json.loads((place / "out" / "profile" / "profile.json").read_bytes())
        for place in (folder, whole.folder)
    )
    for document in (one, other):
        document.pop("created")
        for fit in document["fits"]:
            fit.pop("fit_seconds", None)
    return same_file(folder, whole, "profile/points.jsonl") and one["facts"] == other["facts"]


def page_finished(folder: Path) -> int:
    """A page that is there is whole, and so is a picture."""
    page = folder / "out" / "page.html"
    if page.exists():
        assert page.read_text().rstrip().endswith("</html>"), "half a page"
    pictures = list((folder / "out").glob("plots/*.svg"))
    for picture in pictures:
        assert picture.read_text().rstrip().endswith("</svg>"), "half a picture"
    return page.exists() + len(pictures)


def report_equal(folder: Path, out: str, whole: Whole) -> bool:
    return same_file(folder, whole, "page.html")


def same_file(folder: Path, whole: Whole, name: str) -> bool:
    return (folder / "out" / name).read_bytes() == (whole.folder / "out" / name).read_bytes()


# Commands ---------------------------------------------------------------------------------------


def prepare_sweep(folder: Path) -> None:
    write_trace(folder, 40, 100, 20)
    (folder / "sweep.toml").write_text(SWEEP)


def prepare_report(folder: Path) -> None:
    write_trace(folder, 400, 40, 40)
    made = folder.parent / "runs-for-report"
    if not made.exists():
        command = ("serve-trace", "trace.jsonl", "--device", "sim:l20", "--no-progress",
                   "--scheduler", "nexus,vllm", "--results", str(made))  # fmt: skip
        assert run(folder, command, LIMIT_S).code == 0
    shutil.copytree(made, folder / "runs")


MODEL = ("--device", "sim:l20", "--model", "qwen2.5-3b", "--no-progress")
SUBJECTS = (
    Subject(
        "serve-trace, simulated",
        ("serve-trace", "trace.jsonl", *MODEL, "--scheduler", "nexus,vllm", "--results", "out"),
        lambda folder: write_trace(folder, 1_500, 40, 40), runs_finished, runs_equal,
    ),
    Subject(
        "serve-trace, cpu",
        ("serve-trace", "trace.jsonl", "--device", "cpu", "--model", "tiny", "--dtype", "float32",
         "--no-progress", "--scheduler", "vllm", "--results", "out"),
        lambda folder: write_trace(folder, 40, 100, 20), runs_finished, tokens_equal,
    ),
    Subject(
        "sweep",
        ("sweep", "sweep.toml", "--jobs", "2", "--cache", "out/cells", "-o", "out/table.parquet",
         "--no-progress"),
        prepare_sweep, files_finished("cells/*/*.json", SweepCell), sweep_equal,
    ),
    Subject(
        "profile", ("profile", *MODEL, "--quick", "-o", "out/profile"), lambda folder: None,
        points_finished, profile_equal,
    ),
    Subject(
        "capacity",
        ("capacity", "trace.jsonl", *MODEL, "--goodput", "ttft:p99<2000", "--seeds", "2", "--json",
         "--precision", "10", "--jobs", "1", "--scheduler", "nexus,vllm", "--cache", "out/probes"),
        lambda folder: write_trace(folder, 150, 100, 30), files_finished("probes/*/*.probe", Probe),
        capacity_equal,
    ),
    Subject(
        "report", ("report", "{runs}", "-o", "out/page.html", "--plots", "out/plots"),
        prepare_report, page_finished, report_equal,
    ),
)  # fmt: skip


def start(folder: Path, command: tuple[str, ...], most: int | None = None) -> subprocess.Popen[str]:
    words = [
        word
        for part in command
        for word in ([f"runs/{name}" for name in list_runs(folder / "runs")]
                     if part == "{runs}" else [part])
    ]  # fmt: skip

    def limit() -> None:
        assert most is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return subprocess.Popen(
        [sys.executable, "-m", "nexusbench", *words], cwd=folder, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=None if most is None else limit,
    )  # fmt: skip


def run(folder: Path, command: tuple[str, ...], limit_s: float, most: int | None = None) -> Done:
    return ended(start(folder, command, most), limit_s)


def ended(process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> Done:
    """How it ends; one that hangs is killed, and says so."""
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return Done(HUNG, out, f"no end within {limit_s:g} s. {err}")
    return Done(process.returncode, out, err)


def worked(group: int) -> float:
    """Seconds of processor time that a group of processes has taken, those that ended too."""
    total = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[2]) == group:
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


# Faults -----------------------------------------------------------------------------------------


def killed(
    subject: Subject, folder: Path, number: int, whole: Whole, draw: random.Random
) -> tuple[Done, float, bool]:
    """Send a signal at a moment of the run; seconds since a real one was last written, and whether
    it was still there.
    """
    process = start(folder, subject.command)
    if draw.random() < EARLY:
        moment = draw.random() * whole.begins
    else:
        moment = whole.begins + draw.random() * (whole.seconds - whole.begins)
    while process.poll() is None and worked(process.pid) < moment:
        time.sleep(0.02)
    struck = process.poll() is None
    now = time.time()
    if struck:
        process.send_signal(number)
    done = ended(process)
    manifests = list((folder / "out").glob("*/manifest.json"))
    opened = [RunReader(file.parent).manifest for file in manifests]
    running = [file for file, made in zip(manifests, opened, strict=True)
               if made.status == "running" and not made.simulated]  # fmt: skip
    lost = max((now - file.stat().st_mtime for file in running), default=0.0)
    return done, lost, struck


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place],
                          capture_output=True, check=False).returncode:  # fmt: skip
            return False
        subprocess.run(["umount", place], check=True)
    return True


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[], None]]:
    """``place`` is a disk of ``size`` bytes; what is given makes room."""
    place.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={max(1, size // 4096) * 4096}", "tmpfs"]
    subprocess.run(["mount", *options, str(place)], check=True)
    try:
        yield (
            lambda: (
                subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True) and None
            )
        )
    finally:
        # Lazily: what this process has read may still be mapped.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def problem_of(fault: str, done: Done, struck: bool) -> str:
    """What is wrong about how a command ended; empty if nothing."""
    if "Traceback" in done.err or "unexpected" in done.err:
        return f"a traceback: {done.err[-300:]}"
    # A signal that meets Python before the command line is there ends it at once.
    right = {"kill -9": (-signal.SIGKILL, 0), "SIGTERM": (143, 0, -signal.SIGTERM),
             "full disk": (1, 0)}[fault]  # fmt: skip
    if done.code not in right or (struck and fault == "kill -9" and done.code == 0):
        return f"exit code {done.code}: {done.err[-300:]}"
    if fault == "full disk" and done.code == 1 and "error: " not in done.err:
        return "a full disk is not told"
    return ""


def case(subject: Subject, fault: str, folder: Path, whole: Whole, draw: random.Random) -> Case:
    """One fault, what is left, and the same command again."""
    subject.prepare(folder)
    (folder / "out").mkdir()
    if fault == "full disk":
        share = draw.uniform(0.02, 0.98)
        if MOUNTS:
            with small_disk(folder / "out", round(share * whole.bytes)) as make_room:
                done = run(folder, subject.command, LIMIT_S)
                return judged(subject, fault, folder, whole, done, (done.code == 1, 0.0), make_room)
        largest = max(f.stat().st_size for f in (whole.folder / "out").rglob("*") if f.is_file())
        done = run(folder, subject.command, LIMIT_S, round(share * largest))
        return judged(subject, fault, folder, whole, done, (done.code == 1, 0.0))
    number = signal.SIGKILL if fault == "kill -9" else signal.SIGTERM
    done, lost, struck = killed(subject, folder, number, whole, draw)
    return judged(subject, fault, folder, whole, done, (struck, lost))


def judged(
    subject: Subject,
    fault: str,
    folder: Path,
    whole: Whole,
    done: Done,
    met: tuple[bool, float],
    make_room: Callable[[], None] = lambda: None,
) -> Case:
    struck, lost = met
    finished, problem = 0, problem_of(fault, done, struck)
    try:
        finished = subject.finished(folder)
    except (NexusbenchError, AssertionError, ValueError, msgspec.MsgspecError) as error:
        problem = problem or f"not readable: {error}"
    if not problem:
        make_room()
        again = run(folder, subject.command, LIMIT_S)
        if again.code:
            problem = f"resumed with {again.code}: {again.err[-300:]}"
        elif not subject.equal(folder, again.out, whole):
            problem = "resumed, it differs"
    return Case(struck, finished, lost, problem)


def uninterrupted(subject: Subject, folder: Path) -> Whole:
    subject.prepare(folder)
    (folder / "out").mkdir()
    process = start(folder, subject.command)
    begins = seconds = 0.0
    while process.poll() is None:
        seconds = max(seconds, worked(process.pid))
        if not any(file.is_file() for file in (folder / "out").rglob("*")):
            begins = seconds
        time.sleep(0.02)
    done = ended(process)
    assert done.code == 0, done.err
    size = sum(f.stat().st_size + 4096 for f in (folder / "out").rglob("*"))
    return Whole(folder, done.out, seconds, begins, size)


def row(name: str, fault: str, cases: list[Case], of: int) -> str:
    struck = [one for one in cases if one.struck]
    shares = [one.finished / of for one in struck] or [0.0]
    lost = max((one.lost_s for one in struck), default=0.0)
    right = sum(not one.problem for one in cases)
    return (
        f"{name:<24}{fault:<11}{len(cases):>6}{len(struck):>8}{right:>7}"
        f"{100 * min(shares):>9.0f}{100 * float(np.median(shares)):>6.0f}{100 * max(shares):>6.0f}"
        + (f"{lost:>9.2f}" if lost else f"{'-':>9}")
    )


MOUNTS = can_mount()


def main(arguments: list[str]) -> int:
    each = int(arguments[0]) if arguments else 5
    draw = random.Random(int(arguments[1]) if len(arguments) > 1 else 0)
    disk = "a small tmpfs" if MOUNTS else "RLIMIT_FSIZE: no file may grow beyond a random size"
    print(f"full disk: {disk}")
    print(
        f"{'command':<24}{'fault':<11}{'cases':>6}{'struck':>8}{'right':>7}"
        f"{'kept %: min':>12}{'med':>4}{'max':>5}{'lost s':>9}"
    )
    bad: list[str] = []
    total = 0
    wanted = arguments[2] if len(arguments) > 2 else ""
    for subject in SUBJECTS:
        if not subject.name.startswith(wanted):
            continue
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            (root / "whole").mkdir()
            whole = uninterrupted(subject, root / "whole")
            of = subject.finished(whole.folder)
            for fault in FAULTS:
                cases: list[Case] = []
                for number in range(each):
                    folder = root / f"{fault.replace(' ', '')}-{number}"
                    folder.mkdir()
                    cases.append(case(subject, fault, folder, whole, draw))
                    shutil.rmtree(folder)
                print(row(subject.name, fault, cases, of), flush=True)
                bad += [f"{subject.name}, {fault}: {c.problem}" for c in cases if c.problem]
                total += len(cases)
    for line in bad:
        print(line)
    print(f"{total - len(bad)} of {total} cases are right: what was finished is readable, and the "
          "same command again ends as if nothing had happened")  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

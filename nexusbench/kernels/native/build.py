"""Compiles ``kernels.cpp`` once per machine and source, into the user's cache folder.

The compiled file is named by a hash of all sources, flags and compiler, and appears by an atomic
rename: two processes that build at once both end up with a whole file. Whatever fails (no compiler,
no AVX-512, a read-only home) ends in ``Unavailable`` with a line that says why; callers go on with
torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

OFF = "NEXUSBENCH_NO_NATIVE"  # set to 1: torch only
CACHE = "NEXUSBENCH_CACHE"  # another cache folder

# -O3 without -ffast-math: the order of additions is part of the contract (invariant I8).
_COMMON = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden")
# Best first: (name, CPU flags that it needs, compiler flags).
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "avx2")
LEVELS = (
    ("amx", (*_AVX512, "avx512_bf16", "amx_tile", "amx_bf16")),
    ("avx512_bf16", (*_AVX512, "avx512_bf16")),
    ("avx512", _AVX512),
)
_SPELLED = {"avx512_bf16": "avx512bf16", "amx_tile": "amx-tile", "amx_bf16": "amx-bf16"}
_COMPILE_SECONDS = 300
MAIN = "kernels.cpp"  # includes the rest


class Unavailable(Exception):
    """There are no native kernels here; the text is one line that says why."""


def cpu_flags() -> frozenset[str]:
    """The CPU's instruction set flags as Linux spells them; empty where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def usable_levels(flags: frozenset[str]) -> list[str]:
    """The levels of ``LEVELS`` that a CPU with these flags runs, best first."""
    return [name for name, needs in LEVELS if flags.issuperset(needs)]


def compiler() -> str:
    """The C++ compiler: ``$CXX``, else g++, else c++. Raises Unavailable without one."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("g++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    raise Unavailable(f"no C++ compiler ({wanted or 'g++ or c++'}) is installed")


def cache_folder() -> Path:
    """A folder of the user's own for compiled files, made if missing. Raises Unavailable.

    A folder that others may write to is refused: what lies in it is loaded as code.
    """
    base = os.environ.get(CACHE)
    home = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = home.expanduser() / "nexusbench" / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"no cache folder can be made ({error})") from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Unavailable(f"{folder} is not the user's alone; set {CACHE} to a private folder")
    return folder


def library(level: str | None = None) -> Path:
    """The compiled kernels, compiling them if this machine has not yet. Raises Unavailable.

    ``level`` asks for one of ``LEVELS`` instead of the best that CPU and compiler support.
    """
    if os.environ.get(OFF, "") not in ("", "0"):
        raise Unavailable(f"{OFF} is set")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable(f"{platform.system()} on {platform.machine()}: only Linux on x86-64")
    levels = usable_levels(cpu_flags())
    if not levels:
        raise Unavailable("the CPU has no AVX-512 (F, BW, DQ, VL)")
    if level is not None:
        if level not in levels:
            raise Unavailable(f"the CPU does not support level '{level}'")
        levels = [level]
    program, folder = compiler(), cache_folder()
    sources, refusal = _sources(), ""
    for name in levels:
        try:
            return _compiled(program, folder, sources, name)
        except Unavailable as error:  # an older compiler may support the next level
            refusal = refusal or str(error)
    raise Unavailable(refusal)


def _sources() -> dict[str, bytes]:
    """``kernels.cpp`` and the headers it is made of, by name."""
    folder = files("nexusbench.kernels.native")
    found = (entry for entry in folder.iterdir() if entry.name.endswith((".cpp", ".h")))
    return {entry.name: entry.read_bytes() for entry in sorted(found, key=lambda each: each.name)}


def _compiled(program: str, folder: Path, sources: dict[str, bytes], level: str) -> Path:
    """The file of one level, from the cache or compiled now. Raises Unavailable."""
    needs = dict(LEVELS)[level]
    arguments = [*_COMMON, *(f"-m{_SPELLED.get(flag, flag)}" for flag in needs)]
    parts = [part for name, text in sources.items() for part in (name.encode(), text)]
    key = hashlib.sha256(b"\0".join([*parts, " ".join([program, *arguments]).encode()]))
    target = folder / f"kernels-{level}-{key.hexdigest()[:20]}.so"
    if target.exists():
        return target
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as work:
            made = Path(work) / "kernels.so"
            for name, text in sources.items():
                (Path(work) / name).write_bytes(text)
            done = subprocess.run(
                [program, *arguments, str(Path(work) / MAIN), "-o", str(made)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_COMPILE_SECONDS,
                check=False,
            )
            if done.returncode or not made.exists():
                raise Unavailable(f"{program} failed: {_first_error(done.stderr)}")
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{program} could not be run in {folder}: {error}") from None
    return target


def _first_error(text: str) -> str:
    """The line of a compiler's complaints that says most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if "error" in line.lower():
            return line[:200]
    return lines[0][:200] if lines else "without a message"

"""The tables of docs/cost-models.md whose points are those of a profile, made again:
``python -m tests.docs.cost_models FOLDER`` keeps the profiles in FOLDER and prints the tables.

The errors that need no profile: ``python -m tests.benchmarks.costs``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from nexusbench.costs.base import Target
from nexusbench.profiles.profile import POINTS_FILE, FitScore, load_profile, read_points
from nexusbench.profiling.fitting import fit_model

ROOT = Path(__file__).parents[2]
TARGETS = (("l20", "qwen2.5-3b"), ("h200", "llama-3.1-8b"))
MODELS = ("linear", "nexus", "roofline", "table")
OPTIONS = (
    "nexus", "nexus:curve=B", "nexus:memory=printed", "nexus:contention=none",
    "nexus:contention=rates", "nexus:contention=counts", "nexus:memory=printed,contention=counts",
)  # fmt: skip


def nexusbench(*arguments: str) -> str:
    """Stdout of the command, run in the checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "nexusbench", *arguments, "--no-progress"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def profiled(folder: Path, gpu: str, model: str, *effort: str) -> Path:
    """The profile of that GPU and model, measured unless ``folder`` has it."""
    made = folder / "-".join((gpu, model, *(word.strip("-") for word in effort)))
    if not (made / "profile.json").exists():
        nexusbench("profile", "--device", f"sim:{gpu}", "--model", model, *effort, "-o", str(made))
    return made


def scores(path: Path, spec: str) -> dict[tuple[str, bool], FitScore]:
    """Held-out errors of one cost model by phase and whether it ran beside a neighbour."""
    profile = load_profile(path / "profile.json")
    target = Target(profile.gpu, profile.model)
    fitted = fit_model(
        spec, read_points(path / POINTS_FILE), target, stopwatch=time.perf_counter_ns
    )
    return {(one.phase, one.corunning): one for one in fitted.scores if one.sms == "all"}


def main() -> None:
    """Print the tables of options, of whole profiles and of regret."""
    folder = Path(sys.argv[1])
    whole = [profiled(folder, *target) for target in TARGETS]
    for spec in OPTIONS:
        cells = []
        for path in whole:
            found = scores(path, spec)
            for beside in (False, True):
                for phase in ("prefill", "decode"):
                    one = found[phase, beside]
                    cells.append(f"{one.mape:.1f} ({one.bias:+.1f})")
        print(f"| `{spec}` | " + " | ".join(cells) + " |")
    for gpu, model in TARGETS:
        for effort in (("--quick",), ()):
            path = profiled(folder, gpu, model, *effort)
            cells = []
            for spec in MODELS:
                found = scores(path, spec)
                cells.append(f"{found['all', False].mape:.1f} / {found['all', True].mape:.1f}")
            print(f"| {gpu} {model} {' '.join(effort)} | " + " | ".join(cells) + " |")
    path = profiled(folder, "l20", "llama-3.1-8b")
    text = nexusbench(
        "regret", "workloads/mixed.jsonl", "--device", "sim:l20", "--profile", str(path),
        "--rate", "1.5", "--limit", "600", "--partitioner", "nexus,nexus:beta=2,fixed:prefill=70",
        "--json",
    )  # fmt: skip
    print(json.dumps(json.loads(text), indent=1))


if __name__ == "__main__":
    main()

"""Fits the host times of serving engines on measured closed-loop points, model by model.

    python -m tests.benchmarks.engine_host TABLE --configs DIR [--every 3] [--rounds 4] [--front]

Each point that can be simulated is run once with an engine whose host takes no time; its steps are
kept. What a host adds to TPOT then needs no further run: it is the mean of what it adds to the
steps, over the tokens that they made. For each backend the constants of a step are fitted on every
model but one, and judged on that one; where a backend was measured on one model alone, on half of
the lengths and judged on the other half. --front runs again for the front end (TTFT), on a grid.

Constants of the shipped engines come from here; run it again whenever kernels, links or experts
change, for what these get wrong is otherwise taken for the host's.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import msgspec
import numpy as np

from nexusbench.core.config import RunConfig
from nexusbench.core.host import US, EngineHost
from nexusbench.experiments.fidelity.deployment import Refused
from nexusbench.experiments.fidelity.nelder_mead import nelder_mead
from nexusbench.experiments.fidelity.serving_configs import (
    ServingPlan,
    config_of,
    without_warnings,
)
from nexusbench.experiments.fidelity.serving_runs import replay_points, trace_of
from nexusbench.experiments.fidelity.serving_table import ServingPoint, read_points
from nexusbench.experiments.keys import run_key
from nexusbench.physics.host import load_engine
from nexusbench.results.resolved import ServedModel
from nexusbench.serving.runner import run

GRAIN_NS = 10_000.0  # steps whose times agree to this count together
# Of gap_us, step_us, sequence_us and prompt_layer_us in a fit.
UNIT_US = np.array([1000.0, 1000.0, 20.0, 100.0])
FRONT_ENDS = ((0, 2000), (0.0, 2.0), (0, 10000))  # request, prompt token, reply; us


class Measured(msgspec.Struct, eq=False):
    """A point without a host: its TPOT, and its steps with decodes: ns of kernels, sequences,
    layers (0 of a step without prompt tokens), tokens made (times steps).
    """

    point: ServingPoint
    bare_ms: float
    gpu_ns: np.ndarray
    sequences: np.ndarray
    prompted: np.ndarray
    tokens: np.ndarray

    def tpot_ms(self, host: EngineHost) -> float:
        """TPOT with ``host``."""
        # EngineHost.step_ns of all steps at once; the first of them holds the two together.
        work = host.step_us + host.sequence_us * self.sequences
        work = (work + host.prompt_layer_us * self.prompted) * US
        gpu = self.gpu_ns + host.gap_us * US
        spent = np.maximum(gpu, work) if host.asynchronous else gpu + work
        first = float(self.gpu_ns[0]), int(self.sequences[0]), int(self.prompted[0])
        assert spent[0] == host.step_ns(*first)
        added = spent - self.gpu_ns
        return self.bare_ms + float(np.dot(added, self.tokens) / self.tokens.sum() / 1e6)


def steps_of(point: ServingPoint, config: RunConfig, cache: Path) -> Measured:
    """The steps of a point's run without a host, kept in ``cache`` by all that decides them."""
    path = cache / "steps" / f"{run_key(config)}.npz"
    if not path.is_file():
        with without_warnings():
            result = run(config)
        events, model = result.events, result.resolved.model
        assert isinstance(model, ServedModel)
        submitted, done = events.tables["submitted"], events.tables["step_done"]
        spent = np.round((done["time"] - submitted["time"]) / GRAIN_NS)
        decodes = submitted["decodes"]
        prompted = np.where(submitted["chunks"] > 0, model.num_layers, 0)
        rows = np.stack([spent, decodes + submitted["chunks"], prompted, decodes])
        kinds, counts = np.unique(rows[:, decodes > 0], axis=1, return_counts=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        bare = (events.last_token - events.first_token).mean() / (point.osl - 1) / 1e6
        np.savez(
            path, bare=bare, gpu=kinds[0] * GRAIN_NS, sequences=kinds[1], prompted=kinds[2],
            tokens=kinds[3] * counts,
        )  # fmt: skip
    with np.load(path) as kept:
        names = ("gpu", "sequences", "prompted", "tokens")
        return Measured(point, float(kept["bare"]), *(kept[name] for name in names))


def host_of(values: np.ndarray, *, asynchronous: bool) -> EngineHost:
    """The engine of a fit's point; negative times are 0."""
    gap, step, sequence, layer = np.maximum(values * UNIT_US, 0.0)
    return msgspec.structs.replace(
        load_engine("ideal"), asynchronous=asynchronous, gap_us=float(gap), step_us=float(step),
        sequence_us=float(sequence), prompt_layer_us=float(layer),
    )  # fmt: skip


def errors_of(points: list[Measured], host: EngineHost) -> np.ndarray:
    """Relative errors of TPOT, in per cent."""
    return np.array([100.0 * (m.tpot_ms(host) / m.point.tpot_ms - 1.0) for m in points])


def fitted(points: list[Measured], *, asynchronous: bool) -> tuple[EngineHost, float]:
    """The constants of a step with the least MAPE of TPOT, and that, from several starts."""

    def loss(values: np.ndarray) -> float:
        below = float(np.minimum(values, 0.0).sum())
        host = host_of(values, asynchronous=asynchronous)
        return float(np.abs(errors_of(points, host)).mean()) - 10.0 * below

    found = [
        nelder_mead(loss, np.array(start), 400)
        for start in ((0.3, 1.0, 1.0, 1.0), (0.1, 3.0, 0.2, 0.1), (0.5, 0.2, 3.0, 3.0))
    ]
    best, least = min(found, key=lambda one: one[1])
    return host_of(best, asynchronous=asynchronous), least


def say(what: str, points: list[Measured], host: EngineHost) -> None:
    """One line of errors."""
    found = errors_of(points, host)
    print(
        f"  {what:<44} n {len(found):>4}  MAPE {np.abs(found).mean():6.2f}  bias "
        f"{found.mean():+7.2f} %",
        flush=True,
    )


def fit_steps(backend: str, points: list[Measured]) -> None:
    """Fit and judge one backend, with and without asynchronous scheduling."""
    names = sorted({m.point.name for m in points})
    print(f"{backend}: {len(points)} points of {', '.join(names)}")
    say("without a host", points, load_engine("ideal"))
    for degree in sorted({m.point.tp for m in points}):
        some = [m for m in points if m.point.tp == degree]
        say(f"without a host, TP {degree}", some, load_engine("ideal"))
    for asynchronous in (True, False):
        host, _ = fitted(points, asynchronous=asynchronous)
        kind = "hidden" if asynchronous else "added"
        print(f"  {kind}: {constants(host)}")
        say(f"{kind}, fitted on all", points, host)
        for degree in sorted({m.point.tp for m in points}):
            say(f"{kind}, TP {degree}", [m for m in points if m.point.tp == degree], host)
        for name, out in held_out(points):
            held, _ = fitted([m for m in points if m not in out], asynchronous=asynchronous)
            print(f"  {kind}: {constants(held)}")
            say(f"{kind}, held out: {name}", out, held)


def constants(host: EngineHost) -> str:
    """The constants of a step, in words."""
    return (
        f"gap_us {host.gap_us:.0f}  step_us {host.step_us:.0f}  sequence_us {host.sequence_us:.2f}"
        f"  prompt_layer_us {host.prompt_layer_us:.1f}"
    )


def held_out(points: list[Measured]) -> list[tuple[str, list[Measured]]]:
    """What is judged by a fit on the rest: each model, or of one model alone each half of the
    (isl, osl) pairs.
    """
    names = sorted({m.point.name for m in points})
    if len(names) > 1:
        return [(name, [m for m in points if m.point.name == name]) for name in names]
    pairs = sorted({(m.point.isl, m.point.osl) for m in points})
    halves = pairs[::2], pairs[1::2]
    return [
        (
            f"half of the lengths ({len(half)})",
            [m for m in points if (m.point.isl, m.point.osl) in half],
        )
        for half in halves
        if half
    ]


def fit_front(backend: str, points: list[ServingPoint], plan: ServingPlan, cache: Path) -> None:
    """TTFT over a coarse grid of front ends, steps as shipped."""
    base = load_engine(config_of(points[0], plan).engine or "ideal")
    print(f"{backend}: TTFT of {len(points)} points over front ends")
    for request, token, reply in itertools.product(*FRONT_ENDS):
        host = msgspec.structs.replace(
            base, request_us=float(request), prompt_token_us=token, reply_us=float(reply)
        )
        file = cache / "engines" / f"{backend}-{request}-{token:g}-{reply}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(toml_of(host))
        asked = msgspec.structs.replace(plan, engine=str(file))
        results = replay_points(points, asked, cache, jobs=1)
        found = [(r.run.ttft_ms / r.point.ttft_ms - 1) * 100 for r in results if r.run is not None]
        tpot = [(r.run.tpot_ms / r.point.tpot_ms - 1) * 100 for r in results if r.run is not None]
        print(
            f"  request_us {request:>5}  prompt_token_us {token:g}  reply_us {reply:>5}: TTFT MAPE "
            f"{np.abs(found).mean():6.2f} median {np.median(np.abs(found)):6.2f} bias "
            f"{np.mean(found):+7.2f}  TPOT MAPE {np.abs(tpot).mean():6.2f}",
            flush=True,
        )


def toml_of(host: EngineHost) -> str:
    """An engine's file, its sources this script."""
    values = msgspec.structs.asdict(host)
    values.pop("name")
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for key, value in values.items()
    ]
    lines += ["", "[sources]", *(f"{key} = 'a fit'" for key in values if key != "about")]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the table, run what is not kept, fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--configs", type=Path)
    parser.add_argument("--every", type=int, default=1, help="every Nth point that can be run")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--front", action="store_true", help="fit the front ends, too")
    parser.add_argument("--tp", type=int, help="only this degree of tensor parallelism")
    parser.add_argument("--backend", help="only this one")
    parser.add_argument("--system", help="only this one, such as h100_sxm")
    parser.add_argument("--cache", type=Path, default=Path("results/engine-host"))
    asked = parser.parse_args()
    plan = ServingPlan(configs=asked.configs, rounds=asked.rounds)
    able: dict[str, list[ServingPoint]] = {}
    for point in read_points(asked.table):
        if asked.tp not in (None, point.tp) or asked.backend not in (None, point.backend):
            continue
        if asked.system not in (None, point.system):
            continue
        try:
            config_of(point, plan)
        except Refused:
            continue
        able.setdefault(point.backend, []).append(point)
    for backend, every in sorted(able.items()):
        points = every[:: asked.every]
        if asked.front:
            fit_front(backend, points, plan, asked.cache)
            continue
        found = []
        for point in points:
            bare = msgspec.structs.replace(plan, engine="ideal")
            trace = trace_of(point, bare, asked.cache)
            config = msgspec.structs.replace(config_of(point, bare), trace=str(trace))
            found.append(steps_of(point, config, asked.cache))
        fit_steps(backend, found)


if __name__ == "__main__":
    main()

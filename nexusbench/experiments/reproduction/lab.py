"""Cells on demand: what is asked for and not there is noted, run in one go, and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.experiments import oracle, regret
from nexusbench.experiments.cells import CELL_SUFFIX, SweepCell, failed, kept_of, run_cell
from nexusbench.experiments.keys import code_version, file_sha256
from nexusbench.experiments.neutral import gpu_file, neutral_gpu
from nexusbench.experiments.ranges import device_at
from nexusbench.experiments.regret import judged_run
from nexusbench.experiments.reproduction.measure_names import JUDGED
from nexusbench.experiments.reproduction.spec import Experiment, System, Variant
from nexusbench.experiments.store import Store
from nexusbench.experiments.sweep import SweepPlan, plan_sweep, run_sweep
from nexusbench.experiments.sweep_spec import ConfigFields, Sweep, axes_of, config_of
from nexusbench.metrics.summary import Entry, ScalarEntry
from nexusbench.profiling.effort import QUICK
from nexusbench.profiling.profile import make_profile
from nexusbench.serving.opening import open_subject
from nexusbench.serving.resolve import find_device
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.spec import load_spec
from nexusbench.workloads.trace import write_trace

# As printed: no variant of the experiment.
PRINTED = Variant(name="")


class Unmeasurable(Exception):
    """A cell that a number needs failed; says why."""


def regret_cell(config: RunConfig, *, knowing: bool = False) -> SweepCell:
    """A run whose decisions about the split are judged by the simulated truth; ``knowing`` serves
    it with that truth as belief.
    """
    try:
        row, result = judged_run(config, "", oracle=knowing)
    except NexusbenchError as error:
        return failed(config, str(error))
    judged: dict[str, Entry] = {
        tag: ScalarEntry(title=tag, unit="%", direction="lower", value=getattr(row, tag))
        for tag in JUDGED
    }
    summary = kept_of(result.summary)
    summary = msgspec.structs.replace(summary, metrics={**summary.metrics, **judged})
    return SweepCell(
        config=config, status="ok", digest=result.event_digest,
        simulated=True, summary=summary,
    )  # fmt: skip


def oracle_cell(config: RunConfig) -> SweepCell:
    """The same with the truth itself as belief."""
    return regret_cell(config, knowing=True)


def _judging_version() -> str:
    """Of the code that judges decisions, which decides no run and is in no key."""
    sources = (Path(regret.__file__), Path(oracle.__file__))
    return "-".join(file_sha256(source)[:8] for source in sources)


_SERVING: Mapping[str, tuple[str, Callable[[RunConfig], SweepCell]]] = {
    "run": (CELL_SUFFIX, run_cell),
    "regret": (f".regret-{_judging_version()}.json", regret_cell),
    "oracle": (f".oracle-{_judging_version()}.json", oracle_cell),
}


class Lab:
    """The cells of one experiment, in memory and under ``cache``.

    ``jobs`` processes run them; ``step`` is told of every one that has run.
    """

    def __init__(
        self,
        experiment: Experiment,
        cache: Path,
        *,
        jobs: int = 1,
        fresh: bool = False,
        step: Callable[[str], None] | None = None,
    ) -> None:
        self.experiment, self.ran = experiment, 0
        self._cache, self._jobs, self._step = Path(cache), jobs, step
        self._stores = {
            serve: Store(self._cache, suffix, fresh=fresh) for serve, (suffix, _) in
            _SERVING.items()
        }  # fmt: skip
        self._cells: dict[tuple[str, bytes], SweepCell] = {}
        self._wanted: dict[tuple[str, bytes], RunConfig] = {}
        self._made: dict[str, str] = {}

    @property
    def num_wanted(self) -> int:
        """Cells that were asked for and are not there."""
        return len(self._wanted)

    @property
    def cells(self) -> list[SweepCell]:
        """All that were asked for and are there."""
        return list(self._cells.values())

    def cell(
        self, system: System, point: ConfigFields, seed: int, variant: Variant = PRINTED
    ) -> SweepCell | None:
        """One cell; None if it has yet to run. Raises Unmeasurable for one that failed."""
        config = self._config(system, point, seed, variant)
        key = (system.serve, msgspec.json.encode(config))
        found = self._cells.get(key)
        if found is None:
            self._wanted[key] = config
        elif not found.ok:
            raise Unmeasurable(f"{system.name}: {found.error}")
        return found

    def run(self) -> None:
        """Run what was asked for. Ctrl-C keeps what has ended; call again to go on."""
        wanted, self._wanted = self._wanted, {}
        for serve, (_, function) in _SERVING.items():
            keys = [key for key in wanted if key[0] == serve]
            if keys:
                configs = tuple(wanted[key] for key in keys)
                for position, cell in self._run(serve, configs, function):
                    self._cells[keys[position]] = cell

    def _run(
        self, serve: str, configs: tuple[RunConfig, ...], function: Callable[[RunConfig], SweepCell]
    ) -> Iterator[tuple[int, SweepCell]]:
        experiment, store = self.experiment, self._stores[serve]
        sweep = Sweep(experiment.name, configs, axes_of(configs), experiment.sha256)
        plan: SweepPlan = plan_sweep(sweep, store)
        yield from plan.kept.items()
        for position, cell in run_sweep(plan, store, jobs=self._jobs, function=function):
            self.ran += 1
            if self._step is not None:
                self._step(f"{cell.config.scheduler} {cell.error}".strip())
            yield position, cell

    def _config(
        self, system: System, point: ConfigFields, seed: int, variant: Variant
    ) -> RunConfig:
        fields = {**self.experiment.base, **point, **system.fields, "seed": seed}
        fitted = system.fitted
        if not variant.systems or system.name in variant.systems:
            fields.update(variant.fields)
            fitted = fitted or variant.fitted
        config = config_of(fields)
        if config.trace.endswith(".toml"):
            trace = self._once(f"trace {config.trace}", partial(self._trace, config.trace))
            config = msgspec.structs.replace(config, trace=trace)
        if variant.constant:
            name = f"gpu {config.device} {variant.constant}"
            device = self._once(name, partial(self._gpu, config.device, variant.constant))
            config = msgspec.structs.replace(config, device=device)
        if variant.place is not None:
            device = device_at(config, variant.place, self._cache / "made")
            config = msgspec.structs.replace(config, device=device)
        if fitted:  # to the GPU that it is run on
            name = f"profile {config.device} {config.model} {config.tensor_parallel_size}"
            folder = self._once(name, partial(self._profile, config))
            config = msgspec.structs.replace(config, profile=folder)
        return config

    def _once(self, name: str, make: Callable[[], str]) -> str:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _trace(self, path_of_spec: str) -> str:
        """As many requests as the experiment asks for, from the workload spec."""
        spec = load_spec(Path(path_of_spec))
        count = self.experiment.about.requests or spec.workload.num_requests
        plan = msgspec.structs.replace(spec.workload, num_requests=count)
        path = self._cache / "made" / f"{plan.name}-{count}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_trace(make_trace(msgspec.structs.replace(spec, workload=plan)), path)
        return str(path)

    def _gpu(self, device: str, constant: str) -> str:
        """The same GPU with a constant made neutral."""
        named = find_device(device)
        if named.kind != "sim":
            raise UsageError(
                f"{named.kind}: only a simulated GPU has constants that can be made neutral"
            )
        gpu = neutral_gpu(named.describe(), constant)
        name = f"{Path(named.argument).stem}-without-{constant.replace(' ', '-')}.toml"
        path = self._cache / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(gpu_file(gpu), encoding="utf-8")
        return f"sim:{path}"

    def _profile(self, config: RunConfig) -> str:
        """A quick profile of the device: what a belief is fitted to, never what it is scored by.

        Kept by the code that made it. A half-made one has no place under its name.
        """
        size = config.tensor_parallel_size
        kind, _, gpu = config.device.partition(":")
        device = f"{kind}-{Path(gpu).stem}"
        name = f"profile-{device}-{config.model}-tp{size}-{code_version()[:12]}"
        folder = self._cache / "made" / name
        if folder.is_dir():
            return str(folder)
        subject = open_subject(config)
        half = folder.with_name(f".{name}.tmp")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        with closing(subject.device):
            make_profile(subject, half, QUICK)
        half.replace(folder)
        return str(folder)

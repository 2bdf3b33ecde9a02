"""A file with several wrong keys is refused once, and all of them are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nexusbench.core.errors import InputError
from nexusbench.experiments.paying.spec import load_map
from nexusbench.experiments.sweep_spec import load_sweep
from nexusbench.gates.spec import load_spec as load_gate
from nexusbench.workloads.spec import load_spec as load_workload

MAP = '[map]\ntitle = "t"\ngpus = ["sim:l20"]\nmodel = "qwen2.5-3b"\nloads = [50]\nseeds = 2\n'
CASES: list[tuple[Callable[[Path], object], str, tuple[str, ...]]] = [
    (
        load_workload,
        '[workload]\nnam = "w"\nseeds = 1\n[arrivals]\nprocess = "poisson"\nrate = 1\n'
        '[[classes]]\nname = "a"\ninput = { quantiles = [[0, 1], [1, 9]] }\n'
        "output = { quantiles = [[0, 1], [1, 9]] }\n",
        ("field 'workload.nam'", "unknown too: seeds", "missing too: name, num_requests",
         "Did you mean 'name'?"),
    ),
    (
        load_workload,
        "[arrivals]\n",
        ("field 'workload': missing; missing too: classes. Add them",),
    ),
    (
        load_sweep,
        '[base]\ntrase = "t"\nlimits = 3\nscheduler = "vllm"\n',
        ("field 'base.trase'", "unknown too: limits", "Did you mean 'trace'?"),
    ),
    (
        load_gate,
        '[[runs]]\ntrase = "t"\nlimits = 3\n',
        ("field 'runs[0].trase'", "unknown too: limits", "missing too: trace"),
    ),
    (
        load_gate,
        'rule = ["x"]\nseed = [1]\n[[runs]]\ntrace = "t"\n',
        ("field 'rule'", "unknown too: seed", "Did you mean 'rules'?"),
    ),
    (
        load_map,
        "[map]\ntitel = 't'\ngpu = ['sim:l20']\n",
        ("field 'map.titel'", "unknown too: gpu",
         "missing too: title, gpus, model, loads, seeds, reference, ordered, policy"),
    ),
    (
        load_map,
        MAP + 'reference = "one"\nordered = "one"\npolicy = "one"\n[systems.one]\n'
        'kind = "split"\nschedular = "vllm"\nmodell = "x"\n',
        ("unknown too: modell", "Did you mean 'scheduler'?"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("load", "text", "words"), CASES)
def test_all_wrong_keys_are_told_at_once(
    tmp_path: Path, load: Callable[[Path], object], text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    for word in words:
        assert word in message, message

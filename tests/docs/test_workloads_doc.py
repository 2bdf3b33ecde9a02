"""docs/workloads.md: its specs make traces, its trace is read, its commands run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexusbench.cli.main import main
from nexusbench.workloads.arrivals import PROCESSES
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.lengths import LAWS
from nexusbench.workloads.readers.base import readers
from nexusbench.workloads.readers.native import NativeLine
from nexusbench.workloads.spec import load_spec
from nexusbench.workloads.trace import load_trace

TEXT = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()
SPECS = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def save(folder: Path, spec: str) -> Path:
    rows = "\n".join(f"{100 + i},{10 + i}" for i in range(40))
    (folder / "lengths.csv").write_text(f"num_prefill_tokens,num_decode_tokens\n{rows}\n")
    path = folder / "SPEC.toml"
    path.write_text(spec)
    return path


@pytest.mark.parametrize("spec", SPECS, ids=lambda text: text.splitlines()[0])
def test_specs_make_traces(spec: str, tmp_path: Path) -> None:
    assert len(make_trace(load_spec(save(tmp_path, spec))).requests) > 90


def test_example_trace_is_read(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "t.jsonl").write_text(lines)
    assert [r.follows for r in load_trace(tmp_path / "t.jsonl").requests] == [False, True, False]


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (commands,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    plain = re.sub(r"\[sessions\].*?(?=\[timeouts\])", "", SPECS[0], flags=re.DOTALL)
    save(tmp_path, plain.replace("num_requests = 500", "num_requests = 40"))
    for command in commands.strip().splitlines():
        assert main([*command.split()[1:]]) == 0, command


def test_tables_name_everything_there_is() -> None:
    for name in (*PROCESSES, *LAWS, *readers.names(), *NativeLine.__struct_fields__):
        assert f"`{name}`" in TEXT, name

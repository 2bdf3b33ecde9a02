"""docs/sweeps.md: its spec is one."""

from __future__ import annotations

import re
from pathlib import Path

from nexusbench.experiments.sweep_spec import load_sweep

ROOT = Path(__file__).parents[2]


def test_the_spec_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), re.DOTALL)
    (tmp_path / "workloads").symlink_to(ROOT / "workloads")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "s.toml").write_text(text)
    sweep = load_sweep(tmp_path / "specs" / "s.toml")
    assert len(sweep.configs) == 3 * 3 * 5 - 2 * 5 + 1
    assert (sweep.excluded, sweep.repeated) == (10, 1)
    assert sweep.axes == ("scheduler", "partitioner", "request_rate", "seed")

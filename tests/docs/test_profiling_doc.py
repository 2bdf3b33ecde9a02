"""docs/profiling.md: its commands run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexusbench.cli.main import main

TEXT = (Path(__file__).parents[2] / "docs" / "profiling.md").read_text()


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (commands,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for command in commands.strip().splitlines():
        assert main(command.split()[1:]) == 0, command

"""The tables of docs/when-it-pays.md, from the committed survey: ``python -m
tests.docs.when_it_pays``.
"""

from __future__ import annotations

import re
from pathlib import Path

from nexusbench.experiments.paying.blocks import BLOCKS
from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.spec import load_map
from nexusbench.experiments.paying.survey_files import read_manifest, read_survey

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "when-it-pays.md"
RESULTS = ROOT / "results" / "when-it-pays"
SPEC = ROOT / "workloads" / "when-it-pays" / "map.toml"
BLOCK = re.compile(r"<!-- made: ([\w -]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def committed() -> Survey:
    """The survey that the document shows."""
    return read_survey(RESULTS, load_map(SPEC, quick=read_manifest(RESULTS).quick))


def provenance() -> str:
    """How much was run, and what was left out."""
    manifest = read_manifest(RESULTS)
    commit = (manifest.git_commit or "unknown")[:12]
    text = f"{manifest.runs:,} simulated runs at commit {commit}"
    text += " with changes" if manifest.git_dirty else ""
    if manifest.quick:
        text += f". **This is the reduced map** (`--quick`: {'; '.join(manifest.cut)})"
    return text + ".\n"


def rendered(text: str, survey: Survey) -> str:
    """``text`` with every block made anew."""

    def made(match: re.Match[str]) -> str:
        name = match[1]
        body = provenance() if name == "provenance" else BLOCKS[name](survey)
        return f"<!-- made: {name} -->\n{body}<!-- end -->"

    return BLOCK.sub(made, text)


def main() -> None:
    """Put the committed survey into the document."""
    DOCUMENT.write_text(rendered(DOCUMENT.read_text(), committed()))


if __name__ == "__main__":
    main()

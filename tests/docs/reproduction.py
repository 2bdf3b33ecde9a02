"""The tables of docs/reproduction.md and docs/rivals.md, from the committed results: ``python -m
tests.docs.reproduction``.
"""

from __future__ import annotations

import re
from pathlib import Path

from nexusbench.experiments.reproduction.outcome_files import markdown, read_done

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "docs" / "reproduction.md", ROOT / "docs" / "rivals.md")
BLOCK = re.compile(r"<!-- made of: (\S+) -->\n(.*?)<!-- end of what is made -->", re.DOTALL)


def rendered(text: str, root: Path = ROOT) -> str:
    """``text`` with every block made anew from the results folder that it names."""

    def made(match: re.Match[str]) -> str:
        done = read_done(root / match[1])
        body = markdown(done) if done else "No results are committed yet.\n"
        return f"<!-- made of: {match[1]} -->\n{body}<!-- end of what is made -->"

    return BLOCK.sub(made, text)


def main() -> None:
    """Put the committed results into the documents."""
    for document in DOCUMENTS:
        document.write_text(rendered(document.read_text()))


if __name__ == "__main__":
    main()

"""The score by area, and survivors as one can judge them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutation.mutants import ROOT, Mutant
from tests.mutation.runner import Finding

PAGE = ROOT / "docs" / "mutation.md"
BEGIN, END = "<!-- score: by python -m tests.mutation --write -->", "<!-- /score -->"


@dataclass(frozen=True)
class Row:
    """Counts of one area."""

    area: str
    mutants: int
    noticed: int
    not_run: int

    @property
    def share(self) -> float:
        """Noticed of all, 1 where there are none."""
        return self.noticed / self.mutants if self.mutants else 1.0


@dataclass(frozen=True)
class Score:
    """Rows by area and their sum."""

    rows: list[Row]
    total: Row
    seed: int
    equivalent: int

    @classmethod
    def of(
        cls, mutants: list[Mutant], found: dict[str, Finding], seed: int, equivalent: int
    ) -> Score:
        def row(area: str, own: list[Mutant]) -> Row:
            verdicts = [found[mutant.key].verdict for mutant in own]
            return Row(area, len(own), verdicts.count("noticed"), verdicts.count("not run"))

        areas = list(dict.fromkeys(mutant.area for mutant in mutants))
        rows = [row(area, [m for m in mutants if m.area == area]) for area in areas]
        return cls(rows, row("all", mutants), seed, equivalent)


def table(score: Score) -> str:
    lines = [
        "| area | mutants | noticed | survived | run by no fast test | score |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in (*score.rows, score.total):
        survived = row.mutants - row.noticed - row.not_run
        lines.append(
            f"| {row.area} | {row.mutants} | {row.noticed} | {survived} | {row.not_run} "
            f"| {100 * row.share:.0f} % |"
        )
    lines += ["", f"Seed {score.seed}; {score.equivalent} equivalent mutants are left out."]
    return "\n".join(lines)


def told(mutant: Mutant, how: str = "") -> str:
    """A mutant as a difference of its statement."""
    note = f"  [{how}]" if how else ""
    statement = "\n    ".join(mutant.statement.splitlines()[:3])
    return (
        f"{mutant.key}  {mutant.file}:{mutant.line}  {mutant.function or '(top)'}  "
        f"{mutant.kind}{note}\n    {statement}\n    {mutant.change}"
    )


def write(score: Score, mutants: list[Mutant], found: dict[str, Finding]) -> None:
    """Put the table and the survivors between the marks of docs/mutation.md."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    lines = [BEGIN, "", table(score), "", "Not noticed:", ""]
    for mutant in mutants:
        if found[mutant.key].verdict != "noticed":
            file = mutant.file.removeprefix("nexusbench/")
            lines.append(f"* `{mutant.key}` {file}, {mutant.function}: `{mutant.change}`")
    PAGE.write_text(head + "\n".join(lines) + f"\n\n{END}" + tail, encoding="utf-8")

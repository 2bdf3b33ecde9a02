"""What a reader of one format is given."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.specs import ModelSpec
from nexusbench.experiments.fidelity.partitions.cells import MOST_SIZE, MeasuredRow, rows_of
from nexusbench.experiments.fidelity.partitions.simulated import AttentionLayout, SimulatedGpu
from nexusbench.models.config import load_model
from nexusbench.models.document import model_names

LLAMA_8B = "llama-3.1-8b"
# Llama-3-8B, the shapes of the H100 kernels
LLAMA_HEADS = AttentionLayout(32, 8, 128)
# Zamba2-7B, whose layers were measured on the A100: attention over twice the hidden size of 3,584
ZAMBA_HEADS, ZAMBA_MLP = AttentionLayout(32, 32, 224), (3584, 14336)
LAYOUT = ("heads", "kv_heads", "head_size")  # optional columns of every attention
MLP = ("hidden", "wide")
STEP = ("model", "gpus")
_MOST_NOTES = 20  # of models that are taken for another


class TableReading(msgspec.Struct, frozen=True):
    """A table, its columns, the GPU it is set beside, and the model that was asked for, if any;
    ``notes`` on rows that were left out. ``lines`` are those of the rows that are read; None: all.
    """

    path: Path
    columns: tuple[str, ...]
    gpu: SimulatedGpu
    model: ModelSpec | None = None
    notes: list[str] = []
    lines: frozenset[int] | None = None

    def rows(self) -> Iterator[MeasuredRow]:
        """The rows that are of this GPU: all of them where no column says of which they are."""
        for row in self._of_the_gpu():
            if self.lines is None or row.line in self.lines:
                yield row

    def _of_the_gpu(self) -> Iterator[MeasuredRow]:
        if "gpu" not in self.columns:
            yield from rows_of(self.path, self.columns)
            return
        others: Counter[str] = Counter()
        found = False
        for row in rows_of(self.path, self.columns):
            name = row.text("gpu")
            if is_called(self.gpu.gpu.name, name):
                found = True
                yield row
            else:
                others[name[:60]] += 1
        names = ", ".join(others)[:200]
        if not found:
            raise InputError(
                f"has no row of {self.gpu.gpu.name}: its rows are of {names}",
                file=self.path, field="gpu", hint="Give one of these GPUs",
            )  # fmt: skip
        if others:
            self.notes.append(f"{others.total():,} rows are of other GPUs: {names}")

    def the_only(self, *patterns: str) -> list[str]:
        """The column of each pattern. Raises InputError where two are of one."""
        found = []
        for pattern in patterns:
            names = [name for name in self.columns if re.fullmatch(pattern, name)]
            if len(names) > 1:
                problem = f"is one of {len(names)} columns where one is read"
                hint = "Make a table of each"
                raise InputError(problem, file=self.path, line=1, field=names[1], hint=hint)
            found += names
        return found

    def layout(self, row: MeasuredRow, usual: AttentionLayout) -> AttentionLayout:
        """The heads of an attention kernel: the row's own, the asked model's, or the usual ones."""
        if self.model is not None:
            model = self.model
            usual = AttentionLayout(
                model.num_heads, model.num_kv_heads, model.head_dim, usual.kernel
            )
        heads = row.count("heads", 2**12, usual.heads)
        kv_heads = row.count("kv_heads", 2**12, min(heads, usual.kv_heads))
        if heads % kv_heads:
            raise row.error("kv_heads", f"{heads} heads are no multiple of {kv_heads}")
        size = row.count("head_size", 2**12, usual.head_size)
        return AttentionLayout(heads, kv_heads, size, usual.kernel)

    def mlp(self, row: MeasuredRow) -> tuple[int, int]:
        """(hidden size, intermediate size): the row's own, the asked model's, or Zamba2-7B's."""
        hidden, wide = ZAMBA_MLP
        if self.model is not None:
            hidden, wide = self.model.hidden_size, self.model.intermediate_size
        return row.count("hidden", MOST_SIZE, hidden), row.count("wide", MOST_SIZE, wide)

    def step_model(self, row: MeasuredRow) -> tuple[ModelSpec, int]:
        """The model that a row's step is of, and over how many GPUs it is split."""
        model = self.model
        if row.has("model") and (model is None or _name_in(row) in _known()):
            model = model_called(row)
        elif model is None:
            model = load_model(LLAMA_8B)
        elif row.has("model"):
            note = f"model '{row.text('model')[:60]}' is taken for {model.name}"
            if note not in self.notes and len(self.notes) < _MOST_NOTES:
                self.notes.append(note)
        return model, gpus_of(row, model)


def gpus_of(row: MeasuredRow, model: ModelSpec) -> int:
    """Over how many GPUs a row's model is split. Raises InputError where its heads cannot be."""
    gpus = row.count("gpus", 1024, 1)
    if model.num_heads % gpus:
        problem = f"the {model.num_heads} heads of {model.name} do not divide over {gpus} GPUs"
        raise row.error("gpus", problem, "Every GPU computes as many whole heads: correct the row")
    return gpus


# LLaMA (arXiv 2302.13971, Table 2): layers, hidden size, heads, intermediate size.
_LLAMA = {
    "llama-7b": (32, 4096, 32, 11008),
    "llama-13b": (40, 5120, 40, 13824),
    "llama-30b": (60, 6656, 52, 17920),
    "llama-65b": (80, 8192, 64, 22016),
}


def model_called(row: MeasuredRow) -> ModelSpec:
    """The model in a row's column ``model``: a LLaMA of 2023, or a shipped one, with or without the
    organisation before it. Raises InputError that names the row.
    """
    name = _name_in(row)
    if name in model_names():
        return load_model(name)
    if name not in _LLAMA:
        hint = f"Known: {', '.join(_known())}. Or say with --model which one it is"
        raise row.error("model", f"no model is called '{name:.40}'", hint)
    layers, hidden, heads, wide = _LLAMA[name]
    return ModelSpec(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=128,
        intermediate_size=wide,
        vocab_size=32000,
        max_model_len=2048,
        source="arXiv 2302.13971, Table 2",
    )


def _name_in(row: MeasuredRow) -> str:
    return row.text("model").lower().rpartition("/")[2]


@cache
def _known() -> tuple[str, ...]:
    return (*_LLAMA, *model_names())


def is_called(spec_name: str, name: str) -> bool:
    """Whether a table's name of a GPU ('H200', 'RTX 5070 Ti') is that of a described one."""
    own, told = _words(spec_name), _words(name)
    variants = {"ti", "super", "laptop", "nvl", "pcie"}
    return bool(told) and told <= own and own & variants <= told


def _words(name: str) -> set[str]:
    plain = "".join(letter if letter.isalnum() else " " for letter in name.lower())
    return set(plain.split()) - {"nvidia", "geforce", "jetson", "tesla"}

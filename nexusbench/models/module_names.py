"""What the names, globs and regular expressions of a quantiser's lists match in a decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

# One layer's matrices, by the names of checkpoints and those that servers fuse them to.
ATTENTION = tuple(f"model.layers.N.self_attn.{name}_proj" for name in ("q", "k", "v", "o", "qkv"))
MLP = tuple(f"model.layers.N.mlp.{name}_proj" for name in ("gate", "up", "down", "gate_up"))
EXPERTS = (
    *(f"model.layers.N.mlp.experts.0.{name}_proj" for name in ("gate", "up", "down")),
    *(f"model.layers.N.mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")),
    *(f"model.layers.N.block_sparse_moe.experts.0.w{number}" for number in (1, 2, 3)),
)
MATRICES = (*ATTENTION, *MLP, *EXPERTS)
# Of regular expressions what a glob can say: names, any letter, any text, begin and end.
_SIMPLE = re.compile(r"\^?((?:[\w-]|\\\.|\.\*?(?![+?{*]))*)(\$?)", re.ASCII)


def modules(layers: int, numbered: bool) -> Iterator[str]:
    """The decoder's matrices, of all its layers where their numbers matter."""
    if not numbered:
        yield from MATRICES
        return
    for number in range(layers):
        for matrix in MATRICES:
            yield matrix.replace("layers.N.", f"layers.{number}.")


def as_glob(name: str, layers: int) -> str | None:
    """A module's name, glob or simple regular expression as a glob; None if it is neither.

    Numbers of layers become N (a module of no layer here matches nothing), of experts 0; in one
    with * or ? other digits may be of a layer's number too.
    """
    glob = name
    if name.startswith("re:"):
        # Not run as an expression: one that a folder brings along may take for ever.
        found = _SIMPLE.fullmatch(name[3:])
        if found is None:
            return None
        glob = found[1].replace("\\.", "\0").replace(".*", "*").replace(".", "?")
        glob = glob.replace("\0", ".") + ("" if found[2] else "*")
    elif re.search(r"[\[\](){}|+?\\^$]", glob):
        return None
    if len(glob) > 200:
        return None
    if any(int(number) >= layers for number in re.findall(r"layers[.?](\d{1,9})(?![\d*?])", glob)):
        return "no layer of this model"
    if not re.search(r"layers[.?]\d+[*?]", glob):
        glob = re.sub(r"layers[.?]\d+", "layers.N", glob)
    return re.sub(r"\*{2,}", "*", re.sub(r"experts[.?]\d+", "experts.0", glob))


def is_wild(glob: str) -> bool:
    """Whether it stands for more than one name."""
    return "*" in glob or "?" in glob


def matches(glob: str, module: str) -> bool:
    """Whether ``glob`` names ``module``, a part of its path, or what it is part of."""
    return fnmatchcase(f".{module}.", f"*.{glob}.*")

"""A GPU file whose every complaint names file, line and field; its ``[kernels]`` table."""

from __future__ import annotations

import math
import re
from typing import get_args, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType

from nexusbench.core.bounds import NumberBounds
from nexusbench.core.documents import located, parse_toml
from nexusbench.core.errors import InputError
from nexusbench.core.kernel_constants import (
    EXPERTS,
    PRODUCTS,
    SPARSE,
    STATES,
    Architecture,
    ExpertConstants,
    KernelConstants,
    ProductConstants,
    Tile,
)
from nexusbench.core.registry import did_you_mean

_AS_SHIPPED = "Write it as in a shipped GPU file"


class GpuDocument:
    """A parsed GPU file whose every complaint names file, line and field."""

    def __init__(self, text: str, file: str) -> None:
        self._text, self.file = text, file
        self.data = parse_toml(text, file, hint="Correct this line", values=False)

    def error(self, table: str, key: str, problem: str, hint: str) -> InputError:
        """The complaint about ``key`` of ``table`` ('' = top level), with its line, if any."""
        field = f"{table}.{key}" if table else key
        current, line = "", None  # the table that the line stands in
        for number, content in enumerate(self._text.splitlines(), start=1):
            # Blanks and all: a pattern that leaves them out takes time by the cube of their number.
            header = re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", content)
            if header:
                current = header[1].strip()
            entry = re.match(r"""\s*["']?([\w.-]+)["']?\s*=""", content)
            named = entry is not None and current == table and entry[1] == key
            if named or (header is not None and not table and current == key):
                line = number
                break
        return InputError(problem, file=self.file, line=line, field=field, hint=hint)


def bounds_of(kind: object) -> NumberBounds | None:
    """Those of a field's type, also where it may be UNSET; None for what is no number."""
    kinds = [kind, *get_args(kind)] if UnsetType in get_args(kind) else [kind]
    parts = [part for each in kinds for part in get_args(each)]
    return next((part for part in parts if isinstance(part, NumberBounds)), None)


def check_value(document: GpuDocument, table: str, key: str, value: object, kind: object) -> None:
    """Refuse an empty name and numbers that are not finite or out of their field's bounds."""
    if isinstance(value, str) and not value.strip():
        raise document.error(table, key, "is empty", "Name the GPU")
    if not isinstance(value, int | float):
        return
    bounds = bounds_of(kind) or NumberBounds()
    least, most = bounds.least, bounds.most
    enough = value >= 0 if bounds.zero else value > least
    if not (math.isfinite(value) and enough and value <= most):
        low = "at least 0" if bounds.zero else f"above {least:g}" if least else "above 0"
        text = f"{value}"[:60]
        raise document.error(table, key, f"is {text}", f"It must be {low} and at most {most:g}")


def read_kernels(
    document: GpuDocument, written: object, architecture: object
) -> KernelConstants | UnsetType:
    """The ``[kernels]`` table, checked, of a file whose top level says ``architecture`` (None: it
    does not); UNSET if it has neither. Raises InputError for unknown keys and kinds of kernels,
    wrong types, numbers out of range, tiles that leave out some numbers of rows, and an
    architecture that is none, or another in the table.
    """
    if architecture is not None:
        if architecture not in get_args(Architecture):
            hint = did_you_mean(str(architecture), list(get_args(Architecture)))
            raise document.error("", "architecture", f"is no architecture: {architecture}", hint)
        written = {} if written is UNSET else written
        if isinstance(written, dict):
            if written.get("architecture", architecture) != architecture:
                problem = f"is {written['architecture']}, at the top of the file {architecture}"
                raise document.error("kernels", "architecture", problem, "Leave one of them out")
            written = {**written, "architecture": architecture}
    if written is UNSET:
        return UNSET
    try:
        made = msgspec.convert(written, KernelConstants)
    except msgspec.ValidationError as error:
        field, problem = located(error)
        table, _, key = f"kernels.{field}".rpartition(".") if field else ("", "", "kernels")
        raise document.error(table, key, problem, _AS_SHIPPED) from None
    for name, found, kinds in (
        ("products", made.products, PRODUCTS),
        ("experts", made.experts, EXPERTS),
        ("sparse", made.sparse, SPARSE),
        ("states", made.states, STATES),
    ):
        for kind, constants in found.items():
            if kind not in kinds:
                table = f"kernels.{name}"
                raise document.error(
                    table, kind, "is no kind of kernel", did_you_mean(kind, list(kinds))
                )
            _check_constants(document, f"kernels.{name}.{kind}", constants)
    for name in ("quantise", "window", "latent", "small_kv"):
        if getattr(made, name) is not None:
            _check_constants(document, f"kernels.{name}", getattr(made, name))
    return made


def _check_constants(document: GpuDocument, table: str, constants: msgspec.Struct) -> None:
    hints = get_type_hints(type(constants), include_extras=True)
    for key, kind in hints.items():
        check_value(document, table, key, getattr(constants, key), kind)
    if isinstance(constants, ProductConstants):
        _check_tiles(document, table, constants)
    if isinstance(constants, ExpertConstants):
        shares = constants.tile_shares
        if not all(0.0 <= share <= 1.0 for share in shares) or not any(shares):
            problem, hint = f"are {list(shares)}", "Shares are from 0 to 1, and not all of them 0"
            raise document.error(table, "tile_shares", problem, hint)


def _check_tiles(document: GpuDocument, table: str, constants: ProductConstants) -> None:
    """One way of choosing tiles, which leaves out no number of rows at any number of columns."""
    if constants.waves is not None:
        _check_constants(document, f"{table}.waves", constants.waves)
    ways = ("tiles", "column_tiles", "waves")
    given = [name for name in ways if getattr(constants, name)] or ["tiles"]
    problem = f"stand beside {given[1]}" if len(given) > 1 else ""
    if given == ["tiles"]:
        problem = _gap(constants.tiles)
    for own in constants.column_tiles if given == ["column_tiles"] else ():
        left, right = own[2:4]
        if not (0 <= left < right or right == 0 <= left):
            problem = f"hold {list(own)}"
    if given == ["column_tiles"] and not problem:
        edges = {0, *[tile[3] for tile in constants.column_tiles]}
        for edge in sorted(edges):  # of the columns right of it
            problem = problem or _gap(
                tuple(
                    (above, most, height, width, share, 1)
                    for above, most, left, right, height, width, share in constants.column_tiles
                    if left <= edge < (right or math.inf)
                )
            )
    if problem:
        raise document.error(table, given[0], problem, _AS_SHIPPED)


def _gap(tiles: tuple[Tile, ...]) -> str:
    """What is wrong with the tiles, '' if nothing is."""
    reached = 0.0
    for above, most, height, width, share, cluster in sorted(tiles):
        sizes = min(height, width, cluster) >= 1 and max(height, width, cluster) <= 1024
        if not (sizes and 0.01 <= share <= 1.0 and above >= 0 and (most > above or most == 0)):
            return f"hold {[above, most, height, width, share, cluster]}"
        if above > reached:
            break
        reached = math.inf if most == 0 else max(reached, most)
    return "" if reached == math.inf else f"leave out products of more than {reached:g} rows"

"""The event log: facts in typed columns, appended by the engine, read by metrics, never changed."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Mapping, Sequence

SCHEMA: Mapping[str, tuple[str, ...]] = {
    # A request was offered, at its *scheduled* time; max_tokens is the bound a policy may see.
    "arrived": ("request", "time", "prompt_tokens", "max_tokens"),
    # It left the waiting queue (again after a preemption): cached_tokens came from the prefix
    # cache.
    "admitted": ("request", "time", "cached_tokens"),
    # It could have been admitted but for want of KV blocks; at most once per wait.
    "kv_blocked": ("request", "time"),
    # A batch was launched. predicted is the belief (ns, -1 for none); used blocks exclude cached
    # free ones.
    "submitted": (
        "step", "time", "partition", "sms", "decodes", "decode_context", "chunks", "prefill_tokens",
        "predicted", "kv_used", "running", "waiting", "split",
    ),
    # Which requests computed how many prompt (or recomputed) tokens in which step.
    "chunk": ("step", "request", "tokens", "context"),
    # A launch ended; solo is its time without a neighbour (-1 unknown); tokens = rows of "token" it
    # made.
    "step_done": ("step", "time", "solo", "tokens"),
    # The requests that got a token, in step order: step_done.tokens says how many rows belong to
    # each step.
    "token": ("request",),
    # The split in force changed to row `split` of the split table; reason is the partitioner's
    # mode.
    "repartitioned": ("time", "split", "reason"),
    "preempted": ("request", "time", "kind", "lost_tokens"),
    # A request's KV blocks were copied from one pool to another, from `time` to `end`.
    "moved": ("request", "time", "end", "source", "target", "tokens"),
    # The one end of a request; outcome is an index into OUTCOMES, reason one into the log's
    # strings.
    "ended": ("request", "time", "outcome", "reason"),
}  # fmt: skip

OUTCOMES = ("finished", "rejected", "failed", "cancelled")
PREEMPTION_KINDS = ("recompute", "swap")


class EventTable:
    """One event type: equally long integer columns. ``row`` appends, in schema order."""

    __slots__ = ("_appends", "columns", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        # Requests repeat once per token, so that column is the log's bulk and fits 32 bits.
        code = "i" if name == "token" else "q"
        self.columns: dict[str, array[int]] = {key: array(code) for key in SCHEMA[name]}
        self._appends = [column.append for column in self.columns.values()]

    def row(self, *values: int) -> None:
        """Append one event."""
        for append, value in zip(self._appends, values, strict=True):
            append(value)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def clear(self) -> None:
        """Forget rows that were written elsewhere."""
        for column in self.columns.values():
            del column[:]


class EventLog:
    """All tables of a run, plus the strings and splits that their codes stand for.

    ``digest`` is the SHA-256 over every row in order, whether still held or already drained to
    disk, so equal digests mean byte-identical logs (invariant I6).
    """

    def __init__(self) -> None:
        self.tables = {name: EventTable(name) for name in SCHEMA}
        self.strings: list[str] = []
        self._codes: dict[str, int] = {}
        self._hashes = {
            (name, column): hashlib.sha256()
            for name, columns in SCHEMA.items()
            for column in columns
        }

    def code(self, text: str) -> int:
        """The code of a string, the same one each time."""
        if text not in self._codes:
            self._codes[text] = len(self.strings)
            self.strings.append(text)
        return self._codes[text]

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables.values())

    def rows(self) -> dict[str, int]:
        """How many rows of each table are held."""
        return {name: len(table) for name, table in self.tables.items()}

    def whole(self) -> bool:
        """No row is half there: the columns of a table, and tokens and their steps, agree."""
        equal = all(len({len(c) for c in t.columns.values()}) == 1 for t in self.tables.values())
        return equal and sum(self.tables["step_done"].columns["tokens"]) == len(
            self.tables["token"]
        )

    def cut(self, rows: Mapping[str, int]) -> None:
        """Forget what was held beyond so many rows of each table."""
        for name, table in self.tables.items():
            for column in table.columns.values():
                del column[rows.get(name, 0) :]

    def drain(self) -> None:
        """Fold the rows held into the digest and forget them; the caller has stored them."""
        for name, table in self.tables.items():
            for column, values in table.columns.items():
                self._hashes[name, column].update(_little_endian(values))
            table.clear()

    def digest(self) -> str:
        """SHA-256 (hex) of all rows so far and the string table."""
        found: dict[tuple[str, str], bytes] = {}
        for (name, column), partial in self._hashes.items():
            copy = partial.copy()
            copy.update(_little_endian(self.tables[name].columns[column]))
            found[name, column] = copy.digest()
        return combined_digest(found, self.strings)


def combined_digest(columns: Mapping[tuple[str, str], bytes], strings: Sequence[str]) -> str:
    """The digest of a log from those of its columns (SHA-256 of little-endian values: 32 bits of
    ``token``, 64 of the others), in the order of SCHEMA, and its string table.
    """
    total = hashlib.sha256()
    for (name, column), partial in columns.items():
        total.update(f"{name}.{column}:".encode())
        total.update(partial)
    total.update("\0".join(strings).encode())
    return total.hexdigest()


def _little_endian(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()

"""Results of runs by key, one file each, written whole or not at all: what a kill cannot lose."""

from __future__ import annotations

from pathlib import Path

from nexusbench.core.outputs import not_written
from nexusbench.workloads.source import write_atomic


class Store:
    """A folder of results. ``fresh`` finds nothing that was there before, and replaces it."""

    def __init__(self, root: Path, suffix: str, *, fresh: bool = False) -> None:
        self.root, self._suffix, self._fresh = Path(root), suffix, fresh
        self._written: set[str] = set()

    def path(self, key: str) -> Path:
        """Where the result of ``key`` is, or would be; 256 folders, so that none gets too long."""
        return self.root / key[:2] / f"{key}{self._suffix}"

    def get(self, key: str) -> bytes | None:
        """The result of ``key``, None if there is none."""
        if self._fresh and key not in self._written:
            return None
        try:
            return self.path(key).read_bytes()
        except OSError:
            return None

    def put(self, key: str, content: bytes) -> None:
        """Keep a result. Raises UsageError if the folder cannot be written to."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(path.parent, error, "Choose a folder that you may write to") from None
        write_atomic(path, content)
        self._written.add(key)

"""The files of a checkpoint before a tensor is read: its index, where it may point, headers."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from nexusbench.core.documents import KeyTwice, once, require_file
from nexusbench.core.errors import InputError

INDEX = "model.safetensors.index.json"
AGAIN = "Download the checkpoint again"
# The largest published index has 10 MB, the largest header of a shard less than 1 MB.
_MOST_INDEX_BYTES = 64 << 20
_MOST_HEADER_BYTES = 32 << 20


def weight_map(index: Path) -> dict[str, Path]:
    """Tensor name -> shard, by the index.

    Raises InputError if it is no index, names a tensor twice, a shard that is not there, or a file
    outside its own folder.
    """
    listed = _read(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise _no_index(index)
    where: dict[str, Path] = {}
    for name, file in listed.items():
        if not isinstance(file, str) or not file:
            raise _no_index(index)
        if not _is_plain(file):
            raise InputError(
                f"'{file[:80]}' of tensor '{name[:80]}' is not the name of a file in this folder",
                file=index,
                field="weight_map",
                hint="Do not use this checkpoint: an index names its own shards only",
            )
        where[name] = index.parent / file
    shards = sorted(set(where.values()))
    missing = [path for path in shards if not path.is_file()]
    if missing:
        raise InputError(
            f"shard {missing[0].name} is missing ({len(missing)} of {len(shards)} are)",
            file=index,
            field="weight_map",
            hint="Download it into the same folder",
        )
    for path in shards:
        require_inside(path, index)
    return where


def require_inside(path: Path, named_by: Path) -> None:
    """Raise InputError if ``path`` is a link out of its folder; those of a Hugging Face cache, from
    a snapshot to the blobs of the same repository, are in order.
    """
    if not path.is_symlink():
        return
    target, folder = path.resolve(), path.parent.resolve()
    snapshots = folder.parent
    cached = snapshots.name == "snapshots" and target.parent == snapshots.parent / "blobs"
    if target.parent != folder and not cached:
        raise InputError(
            f"'{path.name}' is a link to a file outside this folder",
            file=named_by,
            hint="Put the file itself there, if you trust it",
        )


def check_header(path: Path) -> None:
    """Raise InputError for a safetensors file whose header cannot be there; OSError as ``open``."""
    require_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    if length > _MOST_HEADER_BYTES or length + 8 > size:
        raise InputError(
            f"is truncated or no safetensors file (a header of {length:,} bytes, in a file of "
            f"{size:,})",
            file=path,
            hint=AGAIN,
        )


def _is_plain(name: str) -> bool:
    """Whether it names a file in the folder itself, on every system."""
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return plain and name not in ("", ".", "..") and "\0" not in name


def _read(index: Path) -> dict[str, object]:
    try:
        with index.open("rb") as file:
            text = file.read(_MOST_INDEX_BYTES + 1)
        if len(text) > _MOST_INDEX_BYTES:
            raise InputError(f"has more than {_MOST_INDEX_BYTES >> 20} MiB", file=index, hint=AGAIN)
        document = json.loads(text, object_pairs_hook=once)
    except KeyTwice as error:
        raise InputError(
            f"names '{str(error)[:80]}' twice", file=index, field="weight_map", hint=AGAIN
        ) from None
    except (OSError, ValueError, RecursionError):
        raise _no_index(index) from None
    if not isinstance(document, dict):
        raise _no_index(index)
    return document


def _no_index(index: Path) -> InputError:
    return InputError(
        "is not an object of tensor names and files", file=index, field="weight_map", hint=AGAIN
    )

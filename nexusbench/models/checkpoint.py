"""Where weights come from: safetensors files, memory-mapped, or a seed."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from nexusbench.core.errors import InputError, UsageError
from nexusbench.models.architecture import DecoderConfig

LOAD_FORMATS = ("auto", "safetensors", "dummy")
# The largest prime below 2^24: no row of a weight falls on the same place of the block as another.
_REPEATED = 16_777_213
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_AGAIN = "Download the checkpoint again"


class TensorSource(Protocol):
    """Something that has the model's tensors by their HF names."""

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor, in any floating type and on the CPU. Raises InputError if it is not so."""
        ...


def open_source(config: DecoderConfig, load_format: str = "auto", seed: int = 0) -> TensorSource:
    """The weights of ``config``: its folder's safetensors, or random ones by ``seed`` (``dummy``).

    ``auto`` is ``dummy`` for the built-in configurations, which have no checkpoint, else
    ``safetensors``. Raises UsageError or InputError with what to do if there are no usable files.
    """
    if load_format not in LOAD_FORMATS:
        raise UsageError(f"no load format '{load_format}'. Known: {', '.join(LOAD_FORMATS)}")
    if load_format == "dummy" or (load_format == "auto" and config.built_in):
        return RandomTensors(seed)
    if config.folder is None:
        raise UsageError(
            f"'{config.spec.name}' is shipped as a description without weights. Give a folder with "
            "its safetensors, or --load-format dummy for random ones"
        )
    return SafetensorFiles(config.folder)


class RandomTensors:
    """Weights of standard deviation 0.02, as HF initialises; norms are one.

    A tensor depends on the seed and its name alone, not on the order of reading. Those of 2^24
    values or more repeat one block of random values from a place of their own on: drawing each of
    the 8 billion values of Llama-3.1-8B takes a minute, and times do not depend on them.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block: torch.Tensor | None = None

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor, fp32."""
        if name.endswith("norm.weight"):
            return torch.ones(*shape)
        # torch's generator heeds 32 bits of its seed only.
        mixed = zlib.crc32(f"{self._seed}:{name}".encode())
        if math.prod(shape) <= _REPEATED:
            return _drawn(mixed, *shape)
        if self._block is None:
            self._block = _drawn(self._seed, _REPEATED)
        values = torch.empty(math.prod(shape))
        first = mixed % _REPEATED
        values[: _REPEATED - first] = self._block[first:]
        for start in range(_REPEATED - first, len(values), _REPEATED):
            part = values[start : start + _REPEATED]
            part.copy_(self._block[: len(part)])
        return values.view(*shape)


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = 0.02 * math.sqrt(3)  # uniform: three times faster to draw than normal
    return torch.empty(*shape).uniform_(-width, width, generator=generator)


class SafetensorFiles:
    """The safetensors of a folder: one file, or shards with an index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Path, Any] = {}
        index = folder / _INDEX
        if index.is_file():
            self._where = _weight_map(index)
            self._listing = index
            return
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise _nothing_in(folder)
        self._listing = found[0] if len(found) == 1 else folder
        self._where = {name: path for path in found for name in self._file(path).keys()}  # noqa: SIM118 - no dict

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor as stored, memory-mapped.

        Raises InputError naming file and tensor if it is missing, damaged, or of another shape or
        type than a float.
        """
        path = self._where.get(name)
        if path is None:
            raise InputError(
                "is missing",
                file=self._listing,
                field=name,
                hint="config.json does not belong to these weights, or they are incomplete",
            )
        file = self._file(path)
        try:
            stored = file.get_slice(name)
            dtype, found = str(stored.get_dtype()), list(stored.get_shape())
        except Exception as error:
            raise InputError(
                f"is not in this shard ({_first_line(error)})", file=path, field=name, hint=_AGAIN
            ) from None
        if dtype not in _FLOATS:
            raise InputError(
                f"has data type {dtype}",
                file=path,
                field=name,
                hint=f"Supported: {', '.join(_FLOATS)}; quantised checkpoints are not",
            )
        if found != list(shape):
            raise InputError(
                f"has shape {found}, config.json asks for {list(shape)}",
                file=path,
                field=name,
                hint="Give the config.json that belongs to these weights",
            )
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _file(self, path: Path) -> Any:
        """The opened file. Raises InputError if it is truncated or not safetensors."""
        if path not in self._open:
            try:
                from safetensors import SafetensorError, safe_open
            except ImportError:
                raise UsageError(
                    "reading weights needs the package safetensors. Install it with "
                    'pip install "nexusbench[torch]"'
                ) from None
            try:
                self._open[path] = safe_open(str(path), framework="pt")
            except SafetensorError as error:
                raise InputError(
                    f"is truncated or no safetensors file ({_first_line(error)})",
                    file=path,
                    hint=_AGAIN,
                ) from None
            except OSError as error:
                raise InputError(
                    f"cannot be read: {error.strerror or _first_line(error)}", file=path
                ) from None
        return self._open[path]


def _weight_map(index: Path) -> dict[str, Path]:
    """Tensor name -> shard, by the index. Raises InputError if a shard is not there."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        where = {str(name): index.parent / str(file) for name, file in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            "is not an object of tensor names and files",
            file=index,
            field="weight_map",
            hint=_AGAIN,
        ) from None
    shards = sorted(set(where.values()))
    missing = [path for path in shards if not path.is_file()]
    if missing:
        raise InputError(
            f"shard {missing[0].name} is missing ({len(missing)} of {len(shards)} are)",
            file=index,
            field="weight_map",
            hint="Download it into the same folder",
        )
    return where


def _nothing_in(folder: Path) -> InputError:
    """The complaint about a folder without safetensors."""
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return InputError(
            f"holds weights only as torch pickles ({pickles[0]}), and opening a pickle runs "
            "whatever code it carries",
            file=folder,
            hint="Give safetensors: most models offer them, and transformers' save_pretrained "
            "writes them",
        )
    return InputError(
        "holds no *.safetensors",
        file=folder,
        hint="Give a checkpoint's folder, or --load-format dummy for random weights",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

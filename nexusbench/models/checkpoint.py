"""Sources of weights: safetensors files, memory-mapped, or random numbers by a seed."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from nexusbench.core.errors import InputError, UsageError
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.shards import AGAIN, INDEX, check_header, require_inside, weight_map

LOAD_FORMATS = ("auto", "safetensors", "dummy")
# The largest prime below 2^24: no row of a weight falls on the same place of the block as another.
_REPEATED = 16_777_213
_FLOATS = ("F32", "F16", "BF16")
_OF_LAYER = re.compile(r"(?:language_model\.)?model\.layers\.(\d{1,6})\.")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class TensorSource(Protocol):
    """Something that has the model's tensors by their HF names."""

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor, in any floating type and on the CPU. Raises InputError if it is not so."""
        ...

    def require_all_read(self, num_layers: int) -> None:
        """Raise InputError if a layer below ``num_layers`` has a tensor that was not read."""
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

    def require_all_read(self, num_layers: int) -> None:
        """There is nothing but what was asked for."""


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = 0.02 * math.sqrt(3)  # uniform: three times faster to draw than normal
    return torch.empty(*shape).uniform_(-width, width, generator=generator)


class SafetensorFiles:
    """The safetensors of a folder: one file, or shards with an index."""

    def __init__(self, folder: Path) -> None:
        self._open: dict[Path, Any] = {}
        self._asked: set[str] = set()
        self._where: dict[str, Path] = {}
        index = folder / INDEX
        if index.is_file():
            self._where = weight_map(index)
            self._listing = index
            return
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise _nothing_in(folder)
        # What lies beside the whole model (an adapter, another layout) is not of it.
        found = [path for path in found if path.name == "model.safetensors"] or found
        for path in found:
            require_inside(path, path)
        self._listing = found[0] if len(found) == 1 else folder
        for path in found:
            for name in self._file(path).keys():  # noqa: SIM118 - no dict
                other = self._where.setdefault(name, path)
                if other is not path:
                    raise InputError(
                        f"is in {other.name} too",
                        file=path,
                        field=name,
                        hint="Keep the files of one model, or add its index",
                    )

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor as stored, memory-mapped.

        Raises InputError naming file and tensor if it is missing, damaged, or of another shape or
        type than a float.
        """
        self._asked.add(name)
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
                f"is not in this shard ({_first_line(error)})", file=path, field=name, hint=AGAIN
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
        # One pass; a sum that overflows in 16 bits is looked at again.
        if not math.isfinite(float(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise InputError("holds NaN or infinite values", file=path, field=name, hint=AGAIN)
        return tensor

    def require_all_read(self, num_layers: int) -> None:
        """Raise InputError for the first tensor of a layer that the decoder has no place for:
        computed without it (a bias, a norm), it would be another model.
        """
        for name in sorted(self._where.keys() - self._asked):
            found = _OF_LAYER.match(name)
            if found and int(found[1]) < num_layers and not name.endswith("rotary_emb.inv_freq"):
                raise InputError(
                    "has no place in the decoder that config.json describes",
                    file=self._where[name],
                    field=name,
                    hint="Give the config.json that belongs to these weights",
                )

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
                check_header(path)
                self._open[path] = safe_open(str(path), framework="pt")
            except SafetensorError as error:
                raise InputError(
                    f"is truncated or no safetensors file ({_first_line(error)})",
                    file=path,
                    hint=AGAIN,
                ) from None
            except OSError as error:
                raise InputError(
                    f"cannot be read: {error.strerror or _first_line(error)}", file=path
                ) from None
        return self._open[path]


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

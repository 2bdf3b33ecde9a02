"""Sources of weights: safetensors files, memory-mapped, or random numbers by a seed."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from nexusbench.core.errors import InputError, UsageError
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.dequantised import FLOATS, DequantisedTensors
from nexusbench.models.shards import AGAIN, INDEX, check_header, require_inside, weight_map

LOAD_FORMATS = ("auto", "safetensors", "dummy")
# The largest prime below 2^24: no row of a weight falls on the same place of the block as another.
_REPEATED = 16_777_213
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

    def working_bytes(self, largest: int) -> float:
        """Bytes that reading a tensor of ``largest`` values takes beside its place."""
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
    files = SafetensorFiles(config.folder)
    return files if config.packing is None else DequantisedTensors(files, config.packing)


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

    def working_bytes(self, largest: int) -> float:
        """Each is made in fp32 before it has its place."""
        return 4.0 * largest


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
        return self.take(name, FLOATS, shape)

    def take(
        self, name: str, dtypes: Sequence[str], shape: Sequence[int] | None = None
    ) -> torch.Tensor:
        """As :meth:`read`, of the safetensors types ``dtypes``, and of any shape for None."""
        dtype, found = self.dtype(name), self.shape(name)
        if dtype not in dtypes:
            hint = f"Supported: {', '.join(dtypes)}"
            if tuple(dtypes) == FLOATS:
                hint += "; others where config.json says how they are quantised"
            raise self.error(name, f"has data type {dtype}", hint)
        if shape is not None and found != tuple(shape):
            problem = f"has shape {list(found)}, config.json asks for {list(shape)}"
            raise self.error(name, problem, "Give the config.json that belongs to these weights")
        tensor: torch.Tensor = self._file(self._where[name]).get_tensor(name)
        if tensor.is_floating_point() and tensor.itemsize > 1 and not _is_finite(tensor):
            raise self.error(name, "holds NaN or infinite values", AGAIN)
        return tensor

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._where

    def dtype(self, name: str) -> str:
        """The data type of a tensor, as safetensors names it. Raises as ``read``."""
        return str(self._slice(name).get_dtype())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises as ``read``."""
        return tuple(self._slice(name).get_shape())

    def error(self, name: str, problem: str, hint: str) -> InputError:
        """The complaint about a tensor."""
        file = self._where.get(name, self._listing)
        return InputError(problem, file=file, field=name, hint=hint)

    def require_all_read(
        self, num_layers: int, spare: Callable[[str], bool] = lambda name: False
    ) -> None:
        """Raise InputError for the first tensor of a layer that the decoder has no place for:
        computed without it (a bias, a norm), it would be another model. ``spare`` are those that
        nothing would change.
        """
        for name in sorted(self._where.keys() - self._asked):
            found = _OF_LAYER.match(name)
            if not found or int(found[1]) >= num_layers or name.endswith("rotary_emb.inv_freq"):
                continue
            if not spare(name):
                problem = "has no place in the decoder that config.json describes"
                hint = "Give the config.json that belongs to these weights"
                raise self.error(name, problem, hint)

    def working_bytes(self, largest: int) -> float:
        """Nothing: files are memory-mapped."""
        return 0.0

    def _slice(self, name: str) -> Any:
        """What the header says of a tensor."""
        self._asked.add(name)
        path = self._where.get(name)
        if path is None:
            hint = "config.json does not belong to these weights, or they are incomplete"
            raise self.error(name, "is missing", hint)
        try:
            return self._file(path).get_slice(name)
        except InputError:
            raise
        except Exception as error:
            problem = f"is not in this shard ({_first_line(error)})"
            raise self.error(name, problem, AGAIN) from None

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


def _is_finite(tensor: torch.Tensor) -> bool:
    """In one pass; a sum that overflows in 16 bits is looked at again."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


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

"""A quantised checkpoint written as plain floats, for what reads no other: transformers without the
packages of each quantiser.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from nexusbench.core.errors import UsageError
from nexusbench.models.checkpoint import TensorSource
from nexusbench.models.document import ConfigDocument
from nexusbench.models.quantisation import unquantised
from nexusbench.models.shards import INDEX


class PlainCopy:
    """A source that writes what is read through it into ``folder``, in ``dtype``; one tensor a
    file, so that no more than one is held.
    """

    def __init__(self, source: TensorSource, folder: Path, dtype: torch.dtype) -> None:
        self._source, self._folder, self._dtype = source, folder, dtype
        self._where: dict[str, str] = {}

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """As of the source. Raises UsageError if there is no room for the copy."""
        from safetensors.torch import save

        tensor = self._source.read(name, shape)
        if name not in self._where:
            file = f"{len(self._where):06}.safetensors"
            self._write(file, save({name: tensor.to(self._dtype).contiguous()}))
            self._where[name] = file
        return tensor

    def require_all_read(self, num_layers: int) -> None:
        """As of the source."""
        self._source.require_all_read(num_layers)

    def working_bytes(self, largest: int) -> float:
        """As of the source, and the tensor as it is written."""
        return self._source.working_bytes(largest) + 2.0 * largest * self._dtype.itemsize

    def finish(self, config: ConfigDocument) -> None:
        """Write the index, and ``config`` without its quantisation."""
        self._write(INDEX, json.dumps({"metadata": {}, "weight_map": self._where}).encode())
        self._write("config.json", json.dumps(unquantised(config).data).encode())

    def _write(self, file: str, content: bytes) -> None:
        try:
            (self._folder / file).write_bytes(content)
        except OSError as error:
            raise UsageError(
                "transformers is given the weights as plain floats, which cannot be written to "
                f"{self._folder}: {error.strerror or os.strerror(error.errno or 0)}. Set TMPDIR to "
                "a folder with room for them"
            ) from None

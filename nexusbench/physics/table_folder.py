"""A folder of measured operator times: which degree of tensor parallelism it holds, what its
``meta.yaml`` says was measured, and its text.

As their authors ship them (LLMServingSim 2.0), profiles of several degrees share one ``meta.yaml``
above ``tp1``, ``tp2`` ..., whose overrides are those of the last degree that was profiled.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from pathlib import Path
from typing import IO

from nexusbench.core.errors import InputError
from nexusbench.core.specs import DTYPE_BYTES, GpuSpec, ModelSpec
from nexusbench.core.units import MIB
from nexusbench.physics.time_grids import TimeCurve

_MOST_BYTES = 64 << 20  # of a file, unpacked: the largest published table has 2 MB
_TP_NAME = re.compile(r"(?:^|[-_.])tp(\d{1,4})$")  # how a folder names its degree
_OTHER_DEGREE = "Give the folder of this degree, or leave --kernel-table out"
# The output head of a few sequences is bound by HBM; measured heads take 1.05 to 1.25 times what
# its peak allows. Only where the weights are so many times L2.
_HEAD, _FEW, _LARGE = (0.8, 1.7), 4, 1.5
# Names of number formats in meta.yaml's ``variant``, by bytes of a weight.
_VARIANTS = {"fp32": 4.0, "float32": 4.0, "bf16": 2.0, "bfloat16": 2.0, "fp16": 2.0,
             "float16": 2.0, "fp8": 1.0, "int8": 1.0}  # fmt: skip


def named_degree(folder: Path) -> int:
    """The degree of tensor parallelism that a folder's name ends with (``tp2``, ``...-tp2``); 1 if
    it names none.
    """
    named = _TP_NAME.search(folder.resolve().name)
    return max(1, int(named[1])) if named is not None else 1


def find_degree(
    folder: Path, gpu: GpuSpec, model: ModelSpec, tensor_parallel: int, digest: hashlib._Hash
) -> tuple[Path, list[int]]:
    """(the folder with the times of ``tensor_parallel``, the degrees that were measured): ``tpN``
    in ``folder``, or ``folder`` itself. Its ``meta.yaml`` may stand above it. Raises InputError for
    another GPU, model shape or degree.
    """
    own, named = folder / f"tp{tensor_parallel}", _TP_NAME.search(folder.resolve().name)
    others = sorted(path.name for path in folder.glob("tp*") if path.is_dir())
    if not own.is_dir():
        if others:
            raise InputError(
                f"holds {', '.join(others)[:200]}: nothing was measured for {tensor_parallel}",
                file=folder, hint=_OTHER_DEGREE,
            )  # fmt: skip
        own = folder
        if named is not None and int(named[1]) != tensor_parallel:
            problem = f"is of tensor parallelism {named[1]}, but {tensor_parallel} is to be run"
            raise InputError(problem, file=folder, hint=_OTHER_DEGREE)
    places = [own, folder, folder.parent] if named is not None else [own, folder]
    found = (place / "meta.yaml" for place in places)
    path = next((path for path in found if path.exists()), folder / "meta.yaml")
    return own, check_meta(path, gpu, model, tensor_parallel, digest)


def check_degree(
    folder: Path,
    gpu: GpuSpec,
    model: ModelSpec,
    tensor_parallel: int,
    degrees: list[int],
    head: TimeCurve,
) -> None:
    """Raises InputError where the output head of one sequence takes much more or less than reading
    a shard of it from HBM does, though another of the ``degrees`` was measured too: then the times
    are of that one. Nothing else in a folder says so.
    """  # fmt: skip
    size = model.vocab_size * model.hidden_size * DTYPE_BYTES[model.head_dtype] / tensor_parallel
    if len(degrees) < 2 or size < _LARGE * gpu.l2_mib * MIB or head.xs[0] > _FEW:
        return
    ratio = head.ys[0] * 1e3 * gpu.hbm_gbps / size
    if not _HEAD[0] <= ratio <= _HEAD[1]:
        rate = size / (head.ys[0] * 1e3)
        raise InputError(
            f"its output head would read {rate:,.0f} GB/s of this GPU's {gpu.hbm_gbps:,.0f} as a "
            f"shard of {tensor_parallel}: the times are of another of the degrees "
            f"{', '.join(map(str, degrees))}",
            file=folder, field="lm_head", hint=_OTHER_DEGREE,
        )  # fmt: skip


def check_meta(
    path: Path, gpu: GpuSpec, model: ModelSpec, tensor_parallel: int, digest: hashlib._Hash
) -> list[int]:
    """Compare ``meta.yaml`` with what is to be run, and return the degrees that were measured.
    Raises InputError for the first difference.

    Its overrides are those of the last degree: of a shard of the model.
    """
    meta = read_meta(path, digest)
    degrees = _degrees(path, meta)
    if tensor_parallel not in degrees:
        line, text = meta.get("tp_degrees", (None, "[1]"))
        raise InputError(
            f"is {text}: nothing was measured for {tensor_parallel}", file=path, line=line,
            field="tp_degrees", hint="Leave --kernel-table or --tensor-parallel-size out",
        )  # fmt: skip
    expected: dict[str, object] = {"gpu": gpu.name}
    for degree in degrees:
        own = {
            "hf_overrides.intermediate_size": model.intermediate_size // degree,
            "hf_overrides.num_attention_heads": model.num_heads // degree,
            "hf_overrides.num_key_value_heads": max(1, model.num_kv_heads // degree),
            "hf_overrides.vocab_size": -(-model.vocab_size // degree),
        }
        if model.moe is not None:
            # The width of the dense layers that such a model could have, but has not.
            del own["hf_overrides.intermediate_size"]
        expected = {"gpu": gpu.name, **own}
        if all(_found(meta, key)[1] in (None, str(wanted)) for key, wanted in own.items()):
            break
    for key, wanted in expected.items():
        name = key.rpartition(".")[2]
        line, found = _found(meta, key)
        if found is None:
            raise InputError("is missing", file=path, field=name, hint="Say what was measured")
        if found != str(wanted):
            raise InputError(
                f"is {found}, but {wanted} is to be run", file=path, line=line, field=name,
                hint="Give the table of this GPU and model, or leave --kernel-table out",
            )  # fmt: skip
    _check_optional(path, meta, model)
    return degrees


def _found(meta: dict[str, tuple[int, str]], key: str) -> tuple[int | None, str | None]:
    """(line, value) of ``key``, wherever it is nested."""
    return next(
        ((n, v) for k, (n, v) in meta.items() if k == key or k.endswith("." + key)), (None, None)
    )


def _degrees(path: Path, meta: dict[str, tuple[int, str]]) -> list[int]:
    line, text = meta.get("tp_degrees", (None, "[1]"))
    parts = text.strip("[] ").replace(" ", "").split(",")
    if not all(part.isdecimal() and len(part) < 5 and int(part) for part in parts):
        raise InputError(
            f"is {text[:80]}, not a list of degrees", file=path, line=line, field="tp_degrees",
            hint="Write it as [1, 2]",
        )  # fmt: skip
    return [int(part) for part in parts]


def _check_optional(path: Path, meta: dict[str, tuple[int, str]], model: ModelSpec) -> None:
    """Compare what a ``meta.yaml`` need not say. Raises InputError for the first difference."""
    for key, (line, found) in meta.items():
        name = key.rpartition(".")[2]
        wanted = {"hidden_size": model.hidden_size, "head_dim": model.head_dim}.get(name)
        if wanted is not None and found != str(wanted):
            raise InputError(
                f"is {found}, but {wanted} is to be run", file=path, line=line, field=name,
                hint="Give the table of this model, or leave --kernel-table out",
            )  # fmt: skip
    at, variant = meta.get("variant", (None, "bf16"))
    if _VARIANTS.get(variant.lower()) != DTYPE_BYTES[model.dtypes.weights]:
        raise InputError(
            f"is {variant}, but weights in {model.dtypes.weights} are to be run", file=path,
            line=at, field="variant", hint="Give the table of this model in this data type, or "
            "leave --kernel-table out",
        )  # fmt: skip


def read_meta(path: Path, digest: hashlib._Hash | None = None) -> dict[str, tuple[int, str]]:
    """``name: value`` lines, nested by indentation, as ``outer.inner`` -> (line, value).

    Raises InputError for a line that is neither that nor a comment.
    """
    found: dict[str, tuple[int, str]] = {}
    stack: list[tuple[int, str]] = []
    for number, text in enumerate(table_text(path, digest).splitlines(), start=1):
        content = text.strip()
        if not content or content.startswith("#"):
            continue
        name, colon, value = content.partition(":")
        if not colon:
            raise InputError(
                "is not 'name: value'", file=path, line=number, hint="Correct this line"
            )
        indent = len(text) - len(text.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, name.strip()))
        path_of = ".".join(part for _, part in stack)
        if path_of in found:
            problem, hint = f"stands in line {found[path_of][0]} too", "Keep one of the two"
            raise InputError(problem, file=path, line=number, field=path_of[:80], hint=hint)
        found[path_of] = (number, value.strip().strip("'\""))
    return found


def table_text(path: Path, digest: hashlib._Hash | None) -> str:
    """A file's text, gunzipped if its name ends in .gz. Raises InputError."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError("is no ordinary file", file=path, hint="Give a CSV file")
        with path.open("rb") as file:
            data = _bounded(path, file)
        if digest is not None:
            digest.update(data)
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = _bounded(path, packed)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", file=path, hint="Give a CSV file") from None
    except (OSError, EOFError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {problem}", file=path, hint="See --help") from None


def _bounded(path: Path, file: IO[bytes] | gzip.GzipFile) -> bytes:
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InputError(
            f"has more than {_MOST_BYTES >> 20} MiB", file=path, hint="Give a kernel table"
        )
    return data

"""Options that say in which data types a model is run."""

from __future__ import annotations

from typing import Annotated

from nexusbench.core.options import Option

_WHAT = "What is run"  # the panel of the command line

ComputedDtype = Annotated[
    str | None,
    Option(
        "auto, bfloat16, float16 or float32 (computed tokens only): what activations are computed "
        "in, and weights where they are not quantised.",
        "DTYPE", _WHAT, unset="the model's; simulated, 16 bit of float32", part="serving",
    ),
]  # fmt: skip
Quantizer = Annotated[
    str | None,
    Option(
        "fp8 quantises plain weights while they are loaded (simulated devices); the name of the "
        "checkpoint's own method changes nothing, and others are refused.",
        "METHOD", _WHAT, unset="the model's", part="serving",
    ),
]  # fmt: skip
CacheDtype = Annotated[
    str | None,
    Option(
        "auto, bfloat16, float16, fp8, fp8_e4m3 or fp8_e5m2: how keys and values are kept "
        "(simulated devices).",
        "DTYPE", _WHAT, unset="the model's", part="serving",
    ),
]  # fmt: skip

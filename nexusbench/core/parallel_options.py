"""Fields of a RunConfig that say over how many GPUs a model is spread, and how. Short names are
vLLM's.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from nexusbench.core.options import Option

SEVERAL = "Several GPUs"  # a panel of the command line
_Gpus = Annotated[int, Meta(ge=1, le=1024)]

TensorParallel = Annotated[
    _Gpus,
    Option(
        "GPUs that share every layer.",
        "N", SEVERAL, ("--tensor-parallel-size", "-tp"), part="serving",
    ),
]  # fmt: skip
DataParallel = Annotated[
    _Gpus,
    Option(
        "Engines that share the requests, each on GPUs of its own (simulated devices). Those of a "
        "mixture of experts share the experts and step together.",
        "N", SEVERAL, ("--data-parallel-size", "-dp"), part="serving",
    ),
]  # fmt: skip
PipelineParallel = Annotated[
    _Gpus,
    Option(
        "GPUs (or groups of them) that share out an engine's layers one after the other, and as "
        "many batches in flight (simulated devices).",
        "N", SEVERAL, ("--pipeline-parallel-size", "-pp"), part="serving",
    ),
]  # fmt: skip
ExpertParallel = Annotated[
    bool,
    Option(
        "Each expert whole on one of the GPUs, instead of a share of its width on all.",
        panel=SEVERAL, part="serving",
    ),
]  # fmt: skip

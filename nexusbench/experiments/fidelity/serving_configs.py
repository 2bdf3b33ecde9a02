"""What a measured closed-loop point is here: a model's description, a GPU, an engine, a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.specs import ModelSpec
from nexusbench.experiments.fidelity.deployment import Refused, deployment_of, requests_of
from nexusbench.experiments.fidelity.serving_table import ServingPoint
from nexusbench.models.config import model_names
from nexusbench.models.document import open_config
from nexusbench.models.families.base import family_of
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.host import engine_names, engine_since, load_engine
from nexusbench.serving.opening import check_run

# The rule by which aiconfigurator's generator starts the servers that its tables were measured on
# (rule_plugin/benchmark/{vllm,trtllm}.rule, Apache-2.0): max_num_tokens of an aggregated server.
BUDGET_BEYOND_PROMPT = 1500
# InferenceX (github.com/SemiAnalysisAI/InferenceX, Apache-2.0): random-range-ratio of its client,
# and vLLM's own default of max-num-batched-tokens, which its scripts leave or repeat.
INFERENCEX_RANGE, INFERENCEX_BUDGET = 0.8, 8192
# Its scripts for SGLang: chunked-prefill-size (the least of them), and on Blackwell GPUs
# scheduler-recv-interval below, and from so many users on.
INFERENCEX_CHUNK = 16_384
INFERENCEX_INTERVALS, INFERENCEX_BUSY = (10, 30), 16
# Its scripts for TensorRT-LLM: max_num_tokens, where a prompt is not longer.
INFERENCEX_LEAST = 8192
_INFERENCEX_BUDGETS = {
    "vllm": (INFERENCEX_BUDGET, False), "sglang": (INFERENCEX_CHUNK, False),
    "trtllm": (INFERENCEX_LEAST, True),
}  # fmt: skip
# Its scripts for Blackwell GPUs keep keys and values of quantised models in fp8, whatever backend.
INFERENCEX_KV = "fp8"
_BLACKWELL = ("blackwell", "blackwell-rtx")
_BUDGETED = ("vllm", "trtllm")  # SGLang's chunks have their own size there
_OTHER_NAMES = {"rtx_pro_6000_server": "rtxpro6000", "rtx_pro_6000": "rtxpro6000"}
_FORM_FACTORS = ("_sxm", "_nvl")
# What a name of a model has behind the name of its shape.
_SUFFIX = re.compile(r"[-_](instruct|it|chat|fp8|fp4|nvfp4|mxfp4|int4|bf16|static|pertensor)$")
_SIXTEEN_BITS = ("bfloat16", "float16")
_FOUR_BIT_FLOATS = ("nvfp4", "nvfp4_a16", "mxfp4")
_MOST_TOKENS = 10**8  # of all requests of one point


class ServingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How points are run. ``engine``: one for all, else by backend and version. ``configs`` holds
    ``OWNER--NAME/config.json``. ``rounds`` requests of each user; ``range_ratio``: lengths are
    drawn from that share of isl and osl to all of it. ``budget``: tokens of a batch. Of these two
    None stands for what the runner that measured the point had.
    """

    engine: str | None = None
    configs: Path | None = None
    rounds: int = 10
    steady: bool = False
    range_ratio: float | None = None
    budget: int | None = None
    seed: int = 0

    def range_of(self, point: ServingPoint) -> float:
        """The range ratio of the point's lengths."""
        if self.range_ratio is not None:
            return self.range_ratio
        return INFERENCEX_RANGE if point.of_inferencex else 1.0

    def budget_of(self, point: ServingPoint) -> int | None:
        """Tokens of a batch of the point's server; None: the scheduler's own default."""
        backend = point.backend.lower()
        if self.budget is not None:
            return self.budget
        if point.of_inferencex and backend in _INFERENCEX_BUDGETS:
            least, prompt = _INFERENCEX_BUDGETS[backend]
            return max(least, point.users + point.isl) if prompt else least
        return point.users + point.isl + BUDGET_BEYOND_PROMPT if backend in _BUDGETED else None


def config_of(point: ServingPoint, plan: ServingPlan) -> RunConfig:
    """The run of ``point``, but for its trace. Raises Refused with the reason if it cannot be."""
    if point.mode != "agg":
        raise Refused(f"mode {point.mode}: only aggregated serving (agg) is replayed")
    if point.osl < 2:
        raise Refused("osl 1: there is no time per output token")
    if requests_of(point) * plan.rounds * (point.isl + point.osl) > _MOST_TOKENS:
        raise Refused(f"its requests have more than {_MOST_TOKENS:,} tokens")
    device = f"sim:{gpu_of(point.system)}"
    spread = deployment_of(point)
    engine, scheduler = _engine_and_rules(point, plan.engine)
    blackwell = point.of_inferencex and _is_blackwell(device)
    if scheduler == "sglang" and blackwell and point.dp == 1:
        interval = INFERENCEX_INTERVALS[point.users >= INFERENCEX_BUSY]
        scheduler = f"sglang:receive_interval={interval}"
    budget = plan.budget_of(point)
    model, quantised = model_of(point, plan.configs)
    if blackwell and point.precision:
        quantised = {**quantised, "kv_cache_dtype": INFERENCEX_KV}
    fields: dict[str, Any] = {
        "device": device, "model": model, "scheduler": scheduler, "engine": engine,
        "tensor_parallel_size": spread.tensor, "data_parallel_size": spread.data,
        "pipeline_parallel_size": spread.pipeline,
        "enable_expert_parallel": spread.experts, "concurrency": spread.requests,
        "prefix_caching": False, "max_num_seqs": spread.requests,
        "max_num_batched_tokens": budget, "seed": plan.seed,
        "max_model_len": point.isl + point.osl, **quantised,
    }  # fmt: skip
    config = RunConfig(trace="", **fields)
    problem = _problem(msgspec.json.encode(config))
    if problem:
        raise Refused(f"{point.name}: {problem}")
    return config


def _is_blackwell(device: str) -> bool:
    """Whether the simulated GPU is of that generation."""
    kernels = load_gpu(device.removeprefix("sim:")).kernels
    return kernels is not UNSET and kernels.architecture in _BLACKWELL


def _engine_and_rules(point: ServingPoint, asked: str | None) -> tuple[str, str]:
    """The engine whose host is simulated, and the scheduler of the one that was measured. Raises
    Refused where the backend has none and none was asked for.
    """
    if asked is None:
        engine = engine_of(point)
        return engine, load_engine(engine).scheduler
    try:
        return asked, load_engine(engine_of(point)).scheduler
    except Refused:
        return asked, load_engine(asked).scheduler


@lru_cache(maxsize=4096)
def _problem(key: bytes) -> str:
    """Why the run cannot be: what assembling it would refuse (a context too short, no memory, a
    layer without a kernel). Empty if it can.
    """
    config = msgspec.json.decode(key, type=RunConfig)
    try:
        with without_warnings():
            check_run(config)
    except NexusbenchError as error:
        return str(error).split("\n")[0]
    return ""


@contextmanager
def without_warnings() -> Iterator[None]:
    """What a model's times are not is said once for each run; a table has thousands of them."""
    logger = logging.getLogger("nexusbench")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def gpu_of(system: str) -> str:
    """The simulated GPU of a system such as ``h100_sxm``. Raises Refused."""
    name = system.lower()
    name = _OTHER_NAMES.get(name, name)
    for ending in _FORM_FACTORS:
        name = name.removesuffix(ending)
    if name not in gpu_names():
        raise Refused(f"system {system}: there is no simulated GPU of it")
    return name


def engine_of(point: ServingPoint) -> str:
    """The shipped engine of the point's backend that stands for its version (the newest where the
    point names none). Raises Refused for a backend that there is none of.
    """
    family = [name for name in engine_names() if name.rpartition("-")[0] == point.backend.lower()]
    if not family:
        raise Refused(f"backend {point.backend}: there is no engine of it (--engine names one)")
    family.sort(key=_stands_from)
    wanted = re.match(r"(\d+)\.(\d+)", point.backend_version)
    if wanted is None:
        return family[-1]
    version = int(wanted[1]), int(wanted[2])
    standing = [name for name in family if _stands_from(name) <= version]
    return standing[-1] if standing else family[0]


def _stands_from(engine: str) -> tuple[int, int]:
    """The first version that a shipped engine stands for."""
    major, minor = engine_since(engine).split(".")
    return int(major), int(minor)


def model_of(point: ServingPoint, configs: Path | None) -> tuple[str, dict[str, Any]]:
    """What ``--model`` takes for the point's model in its precision (a shipped name or the path of
    a description), and what else the config says for it. Raises Refused where there is none.
    """
    problems, fitting, sixteen = [], [], ""
    shape: ModelSpec | None = None
    for candidate in _candidates(point.model, configs):
        try:
            model = _described(candidate)
        except NexusbenchError as error:
            problems.append(str(error).split("\n")[0])
            continue
        shape = shape or model
        if _has_precision(model, point.precision):
            fitting.append((candidate, model))
            continue
        if _has_precision(model, ""):
            sixteen = sixteen or candidate
        problems.append(f"{Path(candidate).parent.name or candidate} is {model.dtypes.weights}")
    if fitting:
        # Of several in that precision the one whose scales are as the table says.
        exact = [one for one in fitting if one[1].dtypes.weights == point.gemm_quant]
        return (exact or fitting)[0][0], {}
    if sixteen and "quantization" in RunConfig.__struct_fields__:
        # A table's fp8_block is how its products were estimated, not a quantiser of plain weights.
        wanted = point.precision if point.precision == "fp8" else point.gemm_quant
        return sixteen, {"quantization": wanted or point.precision}
    if shape is not None:
        every = (*model_names(), *map(str, _folders(configs).values()))
        for name in every:
            if _is_alike(name, shape, point.precision):
                return name, {}
    if problems:
        wanted = point.precision or "16 bits"
        raise Refused(f"{point.name} in {wanted}: {problems[0]}")
    raise Refused(f"{point.model}: there is no description of it (--configs DIR names more)")


@lru_cache(maxsize=512)
def _described(candidate: str) -> ModelSpec:
    """Without the warnings of a model that is loaded to be served."""
    document = open_config(candidate)
    return family_of(document).describe(document)


@lru_cache(maxsize=4096)
def _is_alike(candidate: str, shape: ModelSpec, precision: str) -> bool:
    """Whether a description has the layers of ``shape``, in that precision: DeepSeek-R1 in NVFP4
    takes as long as DeepSeek-V3.1 does.
    """
    try:
        model = _described(candidate)
    except NexusbenchError:
        return False
    return _has_precision(model, precision) and _layers(model) == _layers(shape)


def _layers(model: ModelSpec) -> tuple[object, ...]:
    """All that decides times but data types."""
    groups = tuple((group.count, group.mixer, group.mlp) for group in model.groups)
    return model.hidden_size, model.vocab_size, groups


def _candidates(model: str, configs: Path | None) -> list[str]:
    """Descriptions of a model, the likeliest first: its own folder, shipped ones of the same shape,
    folders of the same name in another precision.
    """
    own = model.replace("/", "--")
    name = model.rpartition("/")[2].lower()
    shapes = [name]
    while (shorter := _SUFFIX.sub("", shapes[-1])) != shapes[-1]:
        shapes.append(shorter)
    folders = _folders(configs)
    found = [str(folders[own])] if own in folders else []
    found += [shape for shape in shapes if shape in model_names()]
    for folder, path in folders.items():
        other = folder.partition("--")[2].lower()
        bare = other
        while bare not in shapes and (shorter := _SUFFIX.sub("", bare)) != bare:
            bare = shorter
        if bare in shapes and str(path) not in found:
            found.append(str(path))
    return found


@lru_cache(maxsize=8)
def _folders(configs: Path | None) -> dict[str, Path]:
    """The descriptions in a folder, by OWNER--NAME. Raises UsageError for a folder with none."""
    if configs is None:
        return {}
    try:
        found = {p.name: p / "config.json" for p in sorted(configs.iterdir()) if p.is_dir()}
    except OSError as error:
        raise UsageError(f"--configs {configs}: {error.strerror or error}") from None
    found = {name: path for name, path in found.items() if path.is_file()}
    if not found:
        raise UsageError(f"--configs {configs} holds no OWNER--NAME/config.json")
    return found


def _has_precision(model: ModelSpec, precision: str) -> bool:
    """Whether the weights have the precision that a table calls so (empty: 16 bits)."""
    weights = model.dtypes.weights
    if precision in ("", "bf16", "fp16", *_SIXTEEN_BITS):
        return weights in _SIXTEEN_BITS
    if precision == "fp4":
        return weights in _FOUR_BIT_FLOATS
    return weights.startswith(precision)

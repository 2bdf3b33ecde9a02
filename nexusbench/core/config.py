"""RunConfig and EndpointConfig: frozen structs with everything that decides a run.

An option is declared here only: the annotation of a field holds its type, its bounds and its text
on the command line. Bounds are checked wherever a config is read; values outside of them cannot be
served, and their products with bytes or nanoseconds may exceed 63 bits.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from nexusbench.core import parallel_options as spread
from nexusbench.core.errors import InputError
from nexusbench.core.options import Option, convert_config, declared, field_of, is_unicode

_Config = TypeVar("_Config", bound="RunConfig | EndpointConfig")

WHAT, ENDPOINT, MEMORY, PREFIX = "What is run", "Endpoint", "Memory", "Prefix cache"
LIMITS, TOKENS = "Budgets", "Real tokens (--device cpu, cuda)"
TRAFFIC, MEASURE, OUTPUT = "Traffic", "Measurement", "Output"

Count = Annotated[int, Meta(ge=1, le=10**9)]
Million = Annotated[int, Meta(ge=1, le=10**6)]
Factor = Annotated[float, Meta(ge=1e-6, le=1e12)]
Share = Annotated[float, Meta(gt=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]

_POLICY = "NAME[:KEY=VALUE,...]"
_TOLD = "it is told the length of each request"
_GREEDY = "requests ask for temperature 0"
_TRACE = Option(
    "Native, Mooncake or Qwen JSON lines, Azure or BurstGPT CSV; plain or .gz (detected).",
    "TRACE", part="named", file=True, positional=True,
)  # fmt: skip
_MODEL = Option(
    "A shipped model (nexusbench list models), an HF config.json, or its folder.",
    "MODEL", WHAT, part="named",
)  # fmt: skip


class TrafficConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The requests offered to an engine or a server, and how their latency is judged."""

    max_model_len: Annotated[
        Count | None,
        Option(
            "Most tokens of a request, prompt and output together.",
            "N", LIMITS, unset="the model's",
        ),
    ] = None  # fmt: skip
    too_long: Annotated[
        Literal["reject", "skip", "clip", "error"],
        Option(
            "Requests beyond --max-model-len: reject (counts as a miss), skip, clip the prompt, "
            "or end with an error.",
            "ACTION", LIMITS, part="load",
        ),
    ] = "reject"  # fmt: skip
    speed: Annotated[
        Factor | None,
        Option(
            "Replay this many times as fast: 2 is faster, half the time between arrivals.",
            "FACTOR", TRAFFIC, part="load",
        ),
    ] = None  # fmt: skip
    request_rate: Annotated[
        Factor | None,
        Option(
            "Rescale time evenly to this mean rate, requests per second.",
            "RATE", TRAFFIC, ("--rate", "--request-rate"), part="load",
        ),
    ] = None  # fmt: skip
    burstiness: Annotated[
        Annotated[float, Meta(ge=1e-4, le=1e6)] | None,
        Option(
            "Redraw arrivals (needs --rate): gamma gaps of this shape, 1 is Poisson, less is "
            "burstier.",
            "SHAPE", TRAFFIC, part="load",
        ),
    ] = None  # fmt: skip
    limit: Annotated[
        Annotated[int, Meta(ge=1, le=2**63 - 1)] | None,
        Option(
            "Only the first N requests.", "N", TRAFFIC, ("--limit", "--num-prompts"), part="load"
        ),
    ] = None
    window: Annotated[
        str | None,
        Option("Only requests that arrive in seconds A to B.", "A:B", TRAFFIC, part="load"),
    ] = None
    spread_ties: Annotated[
        Literal["none", "uniform"],
        Option(
            "Spread requests that share a coarse timestamp until the next one.",
            "none|uniform", TRAFFIC, part="load",
        ),
    ] = "none"  # fmt: skip
    quantize_arrivals: Annotated[
        Annotated[float, Meta(ge=1e-6, le=1e9)] | None,
        Option(
            "Round arrivals up to multiples of S seconds (llm-bench does so with 1).",
            "S", TRAFFIC, part="load",
        ),
    ] = None  # fmt: skip
    concurrency: Annotated[
        Count | None,
        Option(
            "A closed loop of N users: the next request comes when one is free, no timestamps.",
            "N", TRAFFIC, part="load",
        ),
    ] = None  # fmt: skip
    warmup_s: Annotated[
        Seconds,
        Option(
            "Leave out what starts earlier than this.", "SECONDS", MEASURE, ("--warmup",),
            part="load",
        ),
    ] = 0.0  # fmt: skip
    goodput: Annotated[
        dict[str, float],
        Option(
            "Bounds on ttft, tpot, e2e or tbt (p99 of a request), as in: ttft:500 tbt:50",
            "KEY:MS ...", MEASURE, part="named",
        ),
    ] = {}  # fmt: skip
    price_per_hour: Annotated[
        Factor | None,
        Option(
            "Of one GPU: adds the cost of a million output tokens.",
            "DOLLARS", MEASURE, part="aside",
        ),
    ] = None  # fmt: skip
    watts: Annotated[
        Factor | None,
        Option("Drawn by one GPU: adds joules per output token.", "WATTS", MEASURE, part="aside"),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**63 - 1)],
        Option("The first seed.", "N", MEASURE, part="named"),
    ] = 0


# Not kw_only, since msgspec lists keyword-only fields last: manifests, tables and labels have the
# fields of the subclass first, then those of its traffic.
class RunConfig(TrafficConfig, frozen=True, forbid_unknown_fields=True):
    """Everything that decides a run: the same config and trace give the same event log on ``sim``
    (I6).

    Names and meanings are vLLM's where it has them; None means "resolve from device and model", and
    what was resolved stands in the manifest. ``goodput`` maps ttft, tbt, tpot, e2e to bounds in ms.
    """

    trace: Annotated[str, _TRACE]
    device: Annotated[
        str,
        Option(
            "auto (a usable CUDA GPU, else sim:l20), sim:GPU (nexusbench list gpus), "
            "sim:FILE.toml for your own GPU, "
            "sim:DIR for the times of the profile in that folder, cpu (real tokens on cores), "
            "cpu:shared (thread priorities), cuda (a GPU's SMs, partitioned), or cuda:streams "
            "(not).",
            "DEVICE", WHAT, part="named", no_server="the server runs where it runs",
        ),
    ] = "auto"  # fmt: skip
    model: Annotated[str, _MODEL] = "llama-3.1-8b"
    scheduler: Annotated[
        str,
        Option(
            "From nexusbench list schedulers. Several, as a,b,c or by repeating the flag, run one "
            "after the other on one trace.",
            _POLICY, WHAT, part="named",
        ),
    ] = "nexus"  # fmt: skip
    partitioner: Annotated[
        str | None,
        Option(
            "What sizes the partitions (nexusbench list partitioners): one for all schedulers, or "
            "one for each in the same order.",
            _POLICY, WHAT, unset="each scheduler's own",
        ),
    ] = None  # fmt: skip
    cost_model: Annotated[
        str | None,
        Option(
            "What the partitioner believes a batch costs (nexusbench list cost-models).",
            _POLICY, WHAT, unset="roofline, with --profile nexus",
        ),
    ] = None  # fmt: skip
    profile: Annotated[
        str | None,
        Option(
            "Fit the cost model to this profile of the device and model: its folder, or the "
            "profile.json in it (nexusbench profile).",
            "PATH", WHAT, file=True,
        ),
    ] = None  # fmt: skip
    force_profile: Annotated[
        bool,
        Option("Use --profile even if it is of another device or model.", panel=WHAT, part="aside"),
    ] = False
    recalibrate: Annotated[
        bool,
        Option(
            "Let the belief follow the device: a running ratio of actual to predicted per phase.",
            panel=WHAT,
        ),
    ] = False
    load_format: Annotated[
        Literal["auto", "safetensors", "dummy"],
        Option(
            "Weights from the model's folder (safetensors) or random by seed (dummy); auto is "
            "dummy for the models tiny and small.",
            "FORMAT", TOKENS,
        ),
    ] = "auto"  # fmt: skip
    dtype: Annotated[
        str | None,
        Option(
            "float32, bfloat16 or float16: what weights are converted to and computed in.",
            "DTYPE", TOKENS, unset="the model's", part="serving",
        ),
    ] = None  # fmt: skip
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=100)],
        Option(
            "0 takes the likeliest token; above (up to 100), tokens are drawn by --seed.",
            "T", TOKENS, part="serving", no_server=_GREEDY,
        ),
    ] = 0.0  # fmt: skip
    top_p: Annotated[
        Share,
        Option(
            "Draw from the likeliest tokens that have this probability together.",
            "SHARE", TOKENS, part="serving", no_server=_GREEDY,
        ),
    ] = 1.0  # fmt: skip
    stop_at_eos: Annotated[
        bool,
        Option(
            "End at the model's end token; else the trace's output lengths decide.",
            panel=TOKENS, part="serving", no_server=_TOLD,
        ),
    ] = False  # fmt: skip
    graphs: Annotated[
        bool,
        Option("Decode by CUDA graphs (--device cuda only).", panel=TOKENS, part="serving"),
    ] = True
    tensor_parallel_size: spread.TensorParallel = 1
    pipeline_parallel_size: spread.PipelineParallel = 1
    data_parallel_size: spread.DataParallel = 1
    enable_expert_parallel: spread.ExpertParallel = False
    kernel_table: Annotated[
        str | None,
        Option(
            "Measured operator times for the simulated GPU, instead of its physics alone.",
            "DIR", WHAT, part="serving", file=True, no_server="nothing is simulated",
        ),
    ] = None  # fmt: skip
    engine: Annotated[
        str | None,
        Option(
            "Whose host time a simulated step and request take (nexusbench list engines), or "
            "FILE.toml.",
            "ENGINE", WHAT, unset="the GPU's step_overhead_us", part="serving",
            no_server="nothing is simulated",
        ),
    ] = None  # fmt: skip
    gpu_memory_utilization: Annotated[
        Share, Option("Share of each GPU's memory for weights and KV.", "SHARE", MEMORY)
    ] = 0.9
    kv_blocks: Annotated[
        Count | None,
        Option(
            "KV blocks in the pool, or pages where windows free theirs; in a pair of GPUs, each "
            "has a pool of so many.",
            "N", MEMORY, unset="from memory",
        ),
    ] = None  # fmt: skip
    swap_space: Annotated[
        Annotated[float, Meta(ge=0, le=1e6)] | None,
        Option(
            "Host memory for KV of preempted requests, GiB for each GPU (simulated devices).",
            "GIB", MEMORY, unset="what the scheduler counts on", part="serving",
        ),
    ] = None  # fmt: skip
    block_size: Annotated[Million, Option("Tokens of a KV block.", "N", MEMORY)] = 16
    prefix_caching: Annotated[
        bool,
        Option(
            # In a panel of its own, since its long negative name widens all rows of a panel.
            "Reuse KV blocks of equal prefixes. vLLM's names of it work too.",
            panel=PREFIX, part="serving",
        ),
    ] = True  # fmt: skip
    max_num_seqs: Annotated[
        Million | None,
        Option(
            "Requests that hold KV blocks at a time, on all partitions and GPUs together.",
            "N", LIMITS, unset="vLLM's for this GPU",
        ),
    ] = None  # fmt: skip
    max_num_batched_tokens: Annotated[
        Count | None,
        Option(
            "Tokens of a batch; each partition runs batches of its own.",
            "N", LIMITS, unset="vLLM's for this GPU",
        ),
    ] = None  # fmt: skip
    max_tokens: Annotated[
        str | None,
        Option(
            "The output bound that a policy may see; 'trace' tells it the truth (an oracle).",
            "N|trace", LIMITS, unset="a power of two for all", part="load", no_server=_TOLD,
        ),
    ] = None  # fmt: skip


class EndpointConfig(TrafficConfig, frozen=True, forbid_unknown_fields=True):
    """Everything that decides a replay against an OpenAI-compatible server at the URL ``endpoint``.

    None means "ask the server": its only model, its context length. ``prompt`` is token ids, text,
    or whichever the server takes. The API key is the value of the environment variable called
    ``api_key_env`` and is nowhere else.
    """

    trace: Annotated[str, _TRACE]
    endpoint: Annotated[
        str,
        Option(
            "Replay against this OpenAI-compatible server, as in http://127.0.0.1:8000/v1, in "
            "real time. --model is then its name for the model.",
            "URL", ENDPOINT,
        ),
    ]  # fmt: skip
    model: Annotated[str | None, _MODEL] = None
    api: Annotated[
        Literal["completions", "chat"] | None,
        Option(
            "Which API is called.",
            "completions|chat", ENDPOINT, unset="completions if it has it",
        ),
    ] = None  # fmt: skip
    prompt: Annotated[
        Literal["auto", "ids", "text"],
        Option(
            "Prompts as token ids, which have the exact length, or as text; auto tries ids.",
            "auto|ids|text", ENDPOINT, part="aside",
        ),
    ] = "auto"  # fmt: skip
    vocab_size: Annotated[
        Annotated[int, Meta(ge=8, le=2**31)],
        Option("Token ids are drawn below this.", "N", ENDPOINT),
    ] = 32_000
    api_key_env: Annotated[
        str | None,
        Option(
            "The environment variable that holds the key; the key itself is never stored.",
            "NAME", ENDPOINT, unset="OPENAI_API_KEY", part="aside",
        ),
    ] = None  # fmt: skip
    timeout_s: Annotated[
        Annotated[float, Meta(ge=0.001, le=1e6)],
        Option(
            "A request whose answer has not ended after so long has failed.",
            "SECONDS", ENDPOINT, ("--timeout",), part="aside",
        ),
    ] = 600.0  # fmt: skip


def fields_of(part: str) -> tuple[str, ...]:
    """The names of all options of that ``part`` (see :class:`Option`), of an engine's run or of a
    replay against a server.
    """
    both = {**declared(RunConfig), **declared(EndpointConfig)}
    return tuple(name for name, field in both.items() if field.option.part == part)


def check_config(config: _Config) -> _Config:
    """Return ``config`` if every field has its type and is within its bounds.

    The command line checks its options itself, naming the flag; this is for configs made in Python
    and read from manifests. Raises InputError naming the field.
    """
    values = msgspec.structs.asdict(config)
    try:
        convert_config(values, type(config))
    except msgspec.ValidationError as error:
        name = field_of(error)
        problem = f"{str(error).split(' - at')[0]}, got {values.get(name)!r}"
        raise InputError(problem, field=name) from None
    for name, value in values.items():
        if isinstance(value, str) and not is_unicode(value):
            hint = "Give it another name: a run's manifest could not hold this one"
            raise InputError(f"{value!r} is not UTF-8", field=name, hint=hint)
    return config

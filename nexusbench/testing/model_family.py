"""check_model_family: the contract of a model family, on its own sample and on damaged copies."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import FullAttention
from nexusbench.core.registry import plugin_name
from nexusbench.core.specs import DTYPE_BYTES, ModelSpec
from nexusbench.costs.roofline import Roofline
from nexusbench.devices.base import DeviceOptions
from nexusbench.models.document import open_config
from nexusbench.models.families.base import (
    ModelFamily,
    check_declaration,
    families,
    family_of,
)
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.testing._errors import ConformanceError, named
from nexusbench.testing._harness import LIMITS, Setting, offer, serve

GPU = "h200"  # the sample may be a whole published model
SHAPES = (BatchShape(1, 500), BatchShape(64, 64_000), BatchShape(8, 900, ((512, 100),)))
MISSING = object()
HOSTILE: tuple[object, ...] = (MISSING, None, 0, -1, 3, 1.5, True, "x", [], {}, 10**12)
# Other decoders: keys that no ordinary one has, with a value that is in force.
OTHERS: dict[str, object] = {
    "architectures": ["AnotherForCausalLM"], "kv_lora_rank": 512, "text_config": {"a": 1},
    "is_encoder_decoder": True,
}  # fmt: skip
MOST_COMPUTED = 20_000_000  # parameters of a sample that is computed too


def check_model_family(family: str | type[ModelFamily]) -> None:
    """Describe the ``sample`` of a model family, and damaged copies of it; simulate and compute it.

    ``family`` is a name of ``nexusbench list model-families`` or a class. Checked are: the sample
    is found by its ``model_type`` and gives a possible model, the same each time (I6); its layers,
    width and vocabulary follow from the config; each damaged copy is described or refused with an
    InputError that names file and field; another decoder is refused; launches have finite times,
    simulated and believed; a simulated GPU serves it; and if it declares ``biases``, the CPU's
    tokens do not depend on how prompts are cut (I8; with torch, and for a sample of at most 20
    million parameters). Raises ConformanceError; UsageError if there is no such family.
    """
    cls: type[ModelFamily] = families.load(family) if isinstance(family, str) else family
    try:
        check_declaration(cls)
    except UsageError as error:
        raise ConformanceError("contract", str(error)) from None
    model_type = (family if isinstance(family, str) else plugin_name(cls)).replace("-", "_")
    sample = {"architectures": [cls.architecture], "model_type": model_type, **cls.sample}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        with named("its sample"):
            model = _described(file, cls, sample)
            if _described(file, cls, sample) != model:
                raise ConformanceError("I6", "describes one config in two ways")
            if isinstance(family, str) and type(family_of(open_config(file))) is not cls:
                raise ConformanceError("contract", f"does not find '{model_type}' by its name")
            _check_model(model)
        with named("sizes"):
            _check_sizes(file, cls, sample, model)
        for key, value, damaged in _damaged(cls, sample):
            with named(f"{key} missing" if value is MISSING else f"{key} = {value!r}"):
                _check_refusal(file, cls, damaged, key)
        with named("launches"):
            _check_times(model)
        if cls.biases is not None and model.num_parameters <= MOST_COMPUTED:
            with named("tokens"):
                _described(file, cls, sample)
                _check_tokens(file, model)


def _described(file: Path, cls: type[ModelFamily], data: dict[str, object]) -> ModelSpec:
    file.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return cls().describe(open_config(file))


def _check_model(model: ModelSpec) -> None:
    """A model that can be: types, sizes, heads, data types, experts."""
    try:
        msgspec.convert(msgspec.to_builtins(model), ModelSpec)
    except msgspec.ValidationError as error:
        raise ConformanceError("contract", f"gives no ModelSpec: {error}") from None
    for linear in model.linears:
        if min(linear.inputs, linear.outputs, linear.count) < 1:
            raise ConformanceError("contract", f"has a layer of no size: {linear}")
    unknown = {*msgspec.structs.astuple(model.dtypes), model.head_dtype} - {*DTYPE_BYTES}
    for group in model.groups:
        mixer, mlp = group.mixer, group.mlp
        if isinstance(mixer, FullAttention) and mixer.num_heads % mixer.num_kv_heads:
            problem = f"{mixer.num_kv_heads} KV heads do not divide {mixer.num_heads} heads"
            raise ConformanceError("contract", problem)
        if isinstance(mlp, ExpertsMlp) and mlp.experts_per_token > mlp.num_experts:
            raise ConformanceError("contract", "a token uses more experts than there are")
        projections = group.projections(model.hidden_size)
        unknown |= {group.dtypes.of(one) for one in projections} - {*DTYPE_BYTES}
    if unknown:
        raise ConformanceError("contract", f"has unknown data types: {sorted(unknown)}")
    if sum(group.count for group in model.groups) != model.num_layers:
        raise ConformanceError("contract", "has groups of another number of layers in all")
    if not model.max_model_len > 0 or not 0 < model.weight_bytes < math.inf:
        raise ConformanceError("contract", "has no context, or no weights")


def _check_sizes(
    file: Path, cls: type[ModelFamily], sample: dict[str, object], model: ModelSpec
) -> None:
    """Layers, width and vocabulary are read: each changes with a key of the sample."""
    changed: set[str] = set()
    for doubled in _doubled(sample):
        try:
            other = _described(file, cls, doubled)
        except InputError:
            continue
        fields = ModelSpec.__struct_fields__
        changed |= {name for name in fields if getattr(other, name) != getattr(model, name)}
    for name in ("num_layers", "hidden_size", "vocab_size"):
        if name not in changed:
            raise ConformanceError("contract", f"{name} follows from no key of the sample")


def _doubled(sample: dict[str, object]) -> Iterator[dict[str, object]]:
    """The sample with one value twice as large, or twice as long; of objects in it likewise."""
    for key, value in sample.items():
        if isinstance(value, dict):
            for inner in _doubled(value):
                yield {**sample, key: inner}
        elif isinstance(value, int) and not isinstance(value, bool):
            yield {**sample, key: 2 * value}
        elif isinstance(value, str | list):
            yield {**sample, key: value * 2}


def _damaged(
    cls: type[ModelFamily], sample: dict[str, object]
) -> Iterator[tuple[str, object, dict[str, object]]]:
    """(key, its new value, the damaged sample): of every key, and of the decoder's in an object of
    its own.
    """
    inner = sample.get(cls.inner)
    held = inner if isinstance(inner, dict) else sample
    others = {
        key: value for key, value in OTHERS.items()
        if key != cls.inner and (key == "architectures" or key not in held)
    }  # fmt: skip
    for key in sample:
        for value in HOSTILE:
            yield key, value, _with(sample, key, value)
    if held is not sample:
        for key in held:
            for value in HOSTILE:
                yield key, value, {**sample, cls.inner: _with(held, key, value)}
    for key, value in others.items():
        if held is sample or key == "architectures":
            yield key, value, _with(sample, key, value)
        else:
            yield key, value, {**sample, cls.inner: _with(held, key, value)}


def _with(data: dict[str, object], key: str, value: object) -> dict[str, object]:
    return {k: v for k, v in {**data, key: value}.items() if v is not MISSING}


def _check_refusal(file: Path, cls: type[ModelFamily], data: dict[str, object], key: str) -> None:
    """Described as a possible model or refused; a refusal names file and field."""
    try:
        model = _described(file, cls, data)
    except InputError as error:
        if error.field is None or file.name not in str(error):
            raise ConformanceError("contract", f"names no file and field: {error}") from None
    except UsageError as error:
        raise ConformanceError("contract", f"is no InputError: {error}") from None
    else:
        _check_model(model)
        held = data.get(cls.inner) if key != "architectures" else data
        held = held if isinstance(held, dict) else data
        if key in OTHERS and key != cls.inner and OTHERS[key] == held.get(key):
            raise ConformanceError("contract", f"describes another decoder ({key}) as its own")


def _check_times(model: ModelSpec) -> None:
    """Launches take finite times, and a simulated GPU serves some requests."""
    from nexusbench.devices.sim import Sim

    gpu = load_gpu(GPU)
    for truth in (Physics(gpu, model), Roofline(gpu=gpu, model=model)):
        for shape in SHAPES:
            if isinstance(truth, Physics):
                ns, what = truth.load(shape, gpu.num_sms).solo, "simulated"
            else:
                ns, what = truth.predict(shape, gpu.num_sms), "believed"
            if not (math.isfinite(ns) and ns > 0):
                raise ConformanceError("contract", f"{shape} is {what} to take {ns} ns")
    options = DeviceOptions(LIMITS.max_num_seqs, LIMITS.max_num_batched_tokens)
    device = Sim(gpu, model, options, name=GPU)
    serve([offer(0, 0.0, 100, 5), offer(1, 1.0, 30, 8)], "vllm", device=device)


def _check_tokens(file: Path, model: ModelSpec) -> None:
    """The CPU's greedy tokens, with prompts in one piece and in several; nothing without torch."""
    if find_spec("torch") is None:
        return
    from nexusbench.devices.cpu import Cpu

    found = []
    for budget in (LIMITS.max_num_batched_tokens, 8):
        limits = msgspec.structs.replace(LIMITS, max_num_batched_tokens=budget)
        options = DeviceOptions(
            limits.max_num_seqs, budget,
            model_name=str(file), load_format="dummy", dtype="float32",
        )  # fmt: skip
        device = Cpu.open("", model, options)
        try:
            requests = [offer(index, 0.0, 20 + index, 4) for index in range(2)]
            serve(requests, "vllm", device=device, setting=Setting(limits=limits))
            found.append({index: list(ids) for index, ids in device.generated().items()})
        finally:
            device.close()
    if found[0] != found[1]:
        raise ConformanceError("I8", f"tokens depend on how prompts are cut: {found}")

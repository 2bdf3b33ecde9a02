"""From the layers of a decoder, one by one, to a ModelSpec: alike ones grouped, data types found,
the context that results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import UNSET

from nexusbench.core.layers import (
    DTYPE_BYTES,
    DenseMlp,
    ExpertsMlp,
    LayerDtypes,
    LayerGroup,
    LayerStack,
)
from nexusbench.core.mixers import FullAttention, Mixer, Projection
from nexusbench.core.specs import Dtypes, ModelSpec, MoeSpec
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.module_names import USUAL, ModuleNames
from nexusbench.models.quantisation import Quantisation, quantisation_of

_COMPUTED = ("bfloat16", "float16", "float32")
_CLASSES = ("attention", "dense", "experts", "shared", "router")


class LayerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: as :class:`LayerGroup`, without a count and data types."""

    mixer: Mixer | None
    mlp: DenseMlp | ExpertsMlp | None
    vectors: int = 0
    others: tuple[Projection, ...] = ()


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder has besides its layers.

    ``vectors`` are the parameters of its last norm and the like, ``embedding_values`` those of
    further embeddings, ``said`` what the description leaves out, one sentence each.
    """

    hidden_size: int
    vocab_size: int
    max_model_len: int
    tie_word_embeddings: bool = False
    vectors: int = 0
    embedding_values: int = 0
    said: tuple[str, ...] = ()


def stack_up(
    config: ConfigDocument,
    plans: Sequence[LayerPlan],
    outside: Outside,
    names: ModuleNames = USUAL,
) -> ModelSpec:
    """The model of these layers, first one first. Raises InputError for data types that cannot be
    described.
    """
    dtype = computed_dtype(config)
    quantised = quantisation_of(config)
    types = _layer_types(plans, outside.hidden_size, dtype, quantised, names)
    kinds: dict[tuple[LayerPlan, LayerDtypes], int] = {}
    order = tuple(kinds.setdefault(kind, len(kinds)) for kind in zip(plans, types, strict=True))
    counts = [0] * len(kinds)
    for index in order:
        counts[index] += 1
    groups = tuple(
        LayerGroup(
            count=count, mixer=plan.mixer, mlp=plan.mlp, dtypes=dtypes, vectors=plan.vectors,
            others=plan.others,
        )
        for (plan, dtypes), count in zip(kinds, counts, strict=True)
    )  # fmt: skip
    head = (quantised and quantised.head) or dtype
    if outside.tie_word_embeddings:
        head = dtype
    stack = LayerStack(
        groups=groups, order=order, head=head, vectors=outside.vectors,
        embedding_values=outside.embedding_values, said=outside.said,
    )  # fmt: skip
    return _model(config, outside, stack, dtype, (quantised and quantised.kv) or dtype)


def computed_dtype(config: ConfigDocument) -> str:
    """Data type of activations: ``dtype`` or its older name ``torch_dtype``, bfloat16 where neither
    is given.
    """
    field = "dtype" if config.data.get("dtype") is not None else "torch_dtype"
    value = config.data.get(field)
    dtype = "bfloat16" if value is None else str(value).removeprefix("torch.")
    if dtype not in _COMPUTED:
        raise config.error(field, f"is {shown(value)}", f"Supported: {', '.join(_COMPUTED)}")
    return dtype


def _layer_types(
    plans: Sequence[LayerPlan],
    hidden: int,
    dtype: str,
    quantised: Quantisation | None,
    names: ModuleNames,
) -> list[LayerDtypes]:
    """Data types of each layer."""
    plain = LayerDtypes(attention=dtype, dense=dtype, experts=dtype, shared=dtype, router=dtype)
    if quantised is None:
        return [plain] * len(plans)
    for experts in {plan.mlp.num_experts for plan in plans if isinstance(plan.mlp, ExpertsMlp)}:
        quantised.check_experts(len(plans), experts)
    found = []
    for index, plan in enumerate(plans):
        group = LayerGroup(count=1, mixer=plan.mixer, mlp=plan.mlp, others=plan.others)
        each = {
            one.name: (one, _type_of(index, one, quantised, names) or dtype)
            for one in group.projections(hidden)
        }
        found.append(_by_class(each.values(), plain))
    return found


def _type_of(
    layer: int, projection: Projection, quantised: Quantisation, names: ModuleNames
) -> str | None:
    """The data type that a quantiser gives a projection; None: as computed."""
    fused = names.get(projection.name) or ((projection.name,),)
    types = {quantised.of(layer, projection.part, module) for module in fused}
    if len(types) > 1:
        both = " and ".join(sorted(str(one or "as computed") for one in types))
        raise quantised.error(f"gives parts of '{projection.name}' of layer {layer} {both}")
    return types.pop()


def _by_class(each: Iterable[tuple[Projection, str]], plain: LayerDtypes) -> LayerDtypes:
    """The type of most weights of a class, and those that differ from it."""
    sizes: dict[str, dict[str, int]] = {}
    each = list(each)
    for one, dtype in each:
        of = sizes.setdefault(one.part, {})
        of[dtype] = of.get(dtype, 0) + one.inputs * one.outputs * one.copies
    usual = {part: max(of, key=lambda name: (of[name], name)) for part, of in sizes.items()}
    apart = tuple((one.name, dtype) for one, dtype in each if dtype != usual[one.part])
    return msgspec.structs.replace(plain, **usual, apart=apart)


def _model(
    config: ConfigDocument, outside: Outside, stack: LayerStack, dtype: str, kv: str
) -> ModelSpec:
    """With a stack, or without one where the older description says the same."""
    mixer = next((g.mixer for g in stack.groups if isinstance(g.mixer, FullAttention)), None)
    heads = next((g.mixer for g in stack.groups if hasattr(g.mixer, "num_heads")), None)
    weights = _most(stack, outside.hidden_size)
    made = ModelSpec(
        name=config.name,
        num_layers=len(stack.order),
        hidden_size=outside.hidden_size,
        num_heads=int(getattr(mixer or heads, "num_heads", 0)),
        num_kv_heads=0 if mixer is None else mixer.num_kv_heads,
        head_dim=0 if mixer is None else mixer.head_dim,
        intermediate_size=max(group.wide for group in stack.groups),
        vocab_size=outside.vocab_size,
        max_model_len=outside.max_model_len,
        tie_word_embeddings=outside.tie_word_embeddings,
        dtypes=Dtypes(weights=weights, embeddings=dtype, kv=kv, activations=dtype),
        source=config.source,
        stack=stack,
    )
    plain = _without_stack(config, made, stack)
    return made if plain is None else plain


def _without_stack(config: ConfigDocument, made: ModelSpec, stack: LayerStack) -> ModelSpec | None:
    """The same without a stack: one kind of layer of the ordinary sort, one type of weights."""
    first, mlp = stack.groups[0], stack.groups[0].mlp
    moe, wide = None, 0
    if isinstance(mlp, DenseMlp):
        wide = mlp.intermediate_size
    elif isinstance(mlp, ExpertsMlp) and mlp.shared_size % mlp.intermediate_size == 0:
        shared = mlp.shared_size // mlp.intermediate_size
        moe = MoeSpec(mlp.num_experts, mlp.experts_per_token, mlp.intermediate_size, shared)
        dense = config.data.get("intermediate_size")  # of no layer, but in the older description
        wide = dense if isinstance(dense, int) and dense > 0 else mlp.intermediate_size
    plain = msgspec.structs.replace(
        made, intermediate_size=wide, moe=moe, stack=UNSET,
        dtypes=msgspec.structs.replace(made.dtypes, weights=first.dtypes.attention),
    )  # fmt: skip
    if len(stack.groups) > 1 or not isinstance(first.mixer, FullAttention) or wide == 0:
        return None
    same = msgspec.structs.replace(plain.groups[0], vectors=first.vectors)
    unused = {part: same.dtypes.attention for part in _CLASSES if part not in _used(first)}
    first = msgspec.structs.replace(first, dtypes=msgspec.structs.replace(first.dtypes, **unused))
    if first != same or stack.head != made.dtypes.embeddings or stack.embedding_values:
        return None
    return None if stack.said else plain


def _used(group: LayerGroup) -> set[str]:
    """The tensor classes that the group has."""
    return {one.part for one in group.projections(1)}


def _most(stack: LayerStack, hidden: int) -> str:
    """The data type of most weights."""
    sizes: dict[str, float] = {}
    for group in stack.groups:
        for one in group.projections(hidden):
            dtype = group.dtypes.of(one)
            size = group.count * one.inputs * one.outputs * one.copies
            sizes[dtype] = sizes.get(dtype, 0) + size
    return max(sizes, key=lambda name: (sizes[name], DTYPE_BYTES[name])) if sizes else "bfloat16"

"""How a model is spread over GPUs: tensor, pipeline, data and expert parallelism, and what each GPU
holds.
"""

from __future__ import annotations

import msgspec

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.specs import DTYPE_BYTES, ModelSpec
from nexusbench.core.work import shard_linears

Layers = tuple[int, int]  # half open


class Parallelism(msgspec.Struct, frozen=True):
    """``data`` engines, each of ``pipeline`` stages of ``tensor`` GPUs.

    The experts of a mixture are spread over the GPUs of a stage, those of all engines, as vLLM does
    it: with ``experts`` each expert lies whole on one GPU, else each GPU has a share of every
    expert's width. The engines then step together. Those of other models share nothing.
    """

    tensor: int = 1
    data: int = 1
    experts: bool = False
    pipeline: int = 1

    @property
    def gpus(self) -> int:
        """Those that hold the same layers."""
        return self.tensor * self.data

    @property
    def spread(self) -> int:
        """GPUs that the experts of a layer are dealt out to, each of them whole."""
        return self.gpus if self.experts else 1

    @property
    def sharded(self) -> int:
        """GPUs that share the width of each expert."""
        return 1 if self.experts else self.gpus

    @property
    def suffix(self) -> str:
        """What a device's name says of it."""
        degrees = (("x", self.tensor), ("pp", self.pipeline), ("dp", self.data))
        text = "".join(f"-{name}{degree}" for name, degree in degrees if degree > 1)
        return text + ("-ep" if self.experts else "")

    def in_lockstep(self, model: ModelSpec) -> bool:
        """Whether the engines step together: the tokens of all meet at the experts."""
        return self.data > 1 and any(isinstance(group.mlp, ExpertsMlp) for group in model.groups)

    def stages(self, num_layers: int) -> list[Layers]:
        """The layers of each stage: equally many, and what is left over one each from the last but
        one backwards (vLLM 0.19, distributed/utils.py, get_pp_indices).
        """
        each, left = divmod(num_layers, self.pipeline)
        counts = [each] * self.pipeline
        for stage in range(self.pipeline - 1 - left, self.pipeline - 1):
            counts[stage] += 1
        made, begin = [], 0
        for count in counts:
            made.append((begin, begin + count))
            begin += count
        return made

    def weight_bytes(self, model: ModelSpec, layers: Layers | None = None) -> float:
        """Bytes of weights on each GPU of the stage with these ``layers`` (None: all): a share of
        the experts', and of the rest its part in tensor parallel, of which each engine has one.
        Routers, projections to latents and KV heads that do not suffice are on each GPU. The first
        stage has the embedding, the last the output head.
        """
        begin, end = layers or (0, model.num_layers)
        within = _within(model, begin, end)
        experts = dense = every = 0.0
        for group, count in zip(model.groups, within, strict=True):
            own = shard_linears(model, group, self.tensor)
            for linear, part in zip(group.linears(model.hidden_size), own, strict=True):
                size = linear.inputs * linear.outputs * linear.count * linear.bytes_each
                every += size
                if linear.name.startswith("expert"):
                    experts += size * count / group.count
                else:
                    kept = part.inputs * part.outputs * part.count * part.bytes_each
                    dense += kept * count / group.count
        first, last, tied = begin == 0, end == model.num_layers, model.tie_word_embeddings
        table = float(model.vocab_size * model.hidden_size)
        embedding = table * DTYPE_BYTES[model.dtypes.embeddings]
        head = embedding if tied else table * DTYPE_BYTES[model.head_dtype]
        vectors = model.weight_bytes - every - embedding - (0.0 if tied else head)
        rest = vectors * (end - begin) / model.num_layers + embedding * first
        if last and not (first and tied):
            rest += head
        return dense + rest / self.tensor + experts / self.gpus


def _within(model: ModelSpec, begin: int, end: int) -> tuple[int, ...]:
    """How many layers of each group lie between two layers."""
    if len(model.groups) == 1:
        return (end - begin,)
    assert not isinstance(model.stack, msgspec.UnsetType)
    return model.stack.within((begin, end))

"""A decoder as a stack of layer groups: what a layer is made of, and the weights, keys and values
and states that follow from it.
"""

from __future__ import annotations

import msgspec

from nexusbench.core.mixers import Mixer, Projection

DTYPE_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,  # a float32 scale of 128 x 128 values: 0.02 %
    "int8": 1.0,  # beside 16-bit activations
    "int8_w8a8": 1.0,  # beside activations of 8-bit integers
    "int4": 0.5,
    # With 16-bit scales and zeros of groups, which are no small part of it; of bitsandbytes a
    # float32 for each 64 values, or with double quantisation a byte and a 256th of a float32.
    "int8_g128": 1.0234375,
    "int8_g64": 1.046875,
    "int8_g32": 1.09375,
    "int4_g128": 0.51953125,
    "int4_g64": 0.5390625,
    "int4_g32": 0.578125,
    "nf4": 0.5625,
    "nf4_double": 0.515869140625,
    "mxfp8": 1.03125,
    "nvfp4": 0.5625,
    "nvfp4_a16": 0.5625,  # with 16-bit activations
    "mxfp4": 0.53125,
}


class Linear(msgspec.Struct, frozen=True, gc=False):
    """A dense layer ``[tokens, inputs] x [inputs, outputs]`` that stands ``count`` times in the
    model, each value in ``bytes_each`` of the type ``dtype``.
    """

    name: str
    inputs: int
    outputs: int
    count: int
    bytes_each: float = 2.0
    dtype: str = "bfloat16"


class DenseMlp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="dense"):
    """A feed-forward part of two matrices, or (``gated``) three: SwiGLU and its relatives."""

    intermediate_size: int
    gated: bool = True

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """Gate and up as one, and down."""
        return _mlp("", hidden, self.intermediate_size, self.gated, "dense")

    @property
    def label(self) -> str:
        """Its width."""
        return f"dense {self.intermediate_size:,}{'' if self.gated else ', not gated'}"


class ExpertsMlp(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="experts"
):
    """Routed experts: a token uses ``experts_per_token`` of ``num_experts``, which a router picks.

    ``shared_size`` is the width of what every token uses beside them (0: nothing), ``dense_size``
    of a dense part that runs in parallel (Gemma 4). With ``latent`` the routed experts work on that
    many values, projected down and up again. ``router`` is False where no matrix routes.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    gated: bool = True
    shared_size: int = 0
    dense_size: int = 0
    latent: int = 0
    router: bool = True

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """Router, routed experts, shared ones, the dense part."""
        inner, size, count = self.latent or hidden, self.intermediate_size, self.num_experts
        first = Projection(
            "expert_gate_up" if self.gated else "expert_up",
            inner, (2 if self.gated else 1) * size, count, "experts",
        )  # fmt: skip
        made = [first, Projection("expert_down", size, inner, count, "experts")]
        if self.router:
            made.insert(0, Projection("router", hidden, count, 1, "router"))
        if self.latent:
            made += [
                Projection("latent_down", hidden, self.latent, 1, "shared"),
                Projection("latent_up", self.latent, hidden, 1, "shared"),
            ]
        if self.shared_size:
            made += _mlp("shared_", hidden, self.shared_size, self.gated, "shared")
        if self.dense_size:
            made += _mlp("", hidden, self.dense_size, self.gated, "dense")
        return tuple(made)

    @property
    def label(self) -> str:
        """How many experts of which width, and what stands beside them."""
        text = f"{self.experts_per_token} of {self.num_experts} experts"
        text += f" of {self.intermediate_size:,}{'' if self.gated else ', not gated'}"
        if self.latent:
            text += f" on {self.latent:,} latent values"
        if self.shared_size:
            text += f", shared {self.shared_size:,}"
        return text + (f", beside dense {self.dense_size:,}" if self.dense_size else "")


def _mlp(
    prefix: str, hidden: int, size: int, gated: bool, part: str
) -> tuple[Projection, Projection]:
    first = Projection(
        f"{prefix}gate_up" if gated else f"{prefix}up", hidden, (2 if gated else 1) * size, 1,
        "dense" if part == "dense" else "shared",
    )  # fmt: skip
    return first, Projection(f"{prefix}down", size, hidden, 1, first.part)


class LayerDtypes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Data type of a layer's weights per tensor class; names are keys of DTYPE_BYTES. ``apart``
    holds (projection, data type) of those that differ from their class.
    """

    attention: str = "bfloat16"
    dense: str = "bfloat16"
    experts: str = "bfloat16"
    shared: str = "bfloat16"
    router: str = "bfloat16"
    apart: tuple[tuple[str, str], ...] = ()

    def of(self, projection: Projection) -> str:
        """The data type of ``projection``."""
        for name, dtype in self.apart:
            if name == projection.name:
                return dtype
        found: str = getattr(self, projection.part)
        return found


class LayerGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``count`` equal layers; ``mixer`` is their attention or state, None where there is none.

    ``vectors`` are the parameters of one layer that are no projections: norms, biases, sinks,
    convolutions; they keep the activations' data type. ``others`` are further matrices that every
    token uses, of the class that each names.
    """

    count: int
    mixer: Mixer | None
    mlp: DenseMlp | ExpertsMlp | None
    dtypes: LayerDtypes = LayerDtypes()
    vectors: int = 0
    others: tuple[Projection, ...] = ()

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """The weight matrices of one layer."""
        mixer = () if self.mixer is None else self.mixer.projections(hidden)
        mlp = () if self.mlp is None else self.mlp.projections(hidden)
        return (*mixer, *mlp, *self.others)

    def linears(self, hidden: int) -> tuple[Linear, ...]:
        """The same with the number of times each stands in the model."""
        return tuple(
            Linear(
                one.name.removeprefix("shared_"), one.inputs, one.outputs,
                self.count * one.copies,
                DTYPE_BYTES[self.dtypes.of(one)],
                self.dtypes.of(one),
            )
            for one in self.projections(hidden)
        )  # fmt: skip

    def parameters(self, hidden: int) -> int:
        """Of all layers of the group."""
        matrices = sum(one.inputs * one.outputs * one.copies for one in self.projections(hidden))
        return self.count * (matrices + self.vectors)

    def active_parameters(self, hidden: int) -> int:
        """Those that one token uses."""
        unused = 0
        if isinstance(self.mlp, ExpertsMlp):
            idle = self.mlp.num_experts - self.mlp.experts_per_token
            unused = sum(
                one.inputs * one.outputs * idle
                for one in self.projections(hidden)
                if one.part == "experts"
            )
        return self.parameters(hidden) - self.count * unused

    @property
    def wide(self) -> int:
        """Values between the two products of the feed-forward part, for one token."""
        if self.mlp is None:
            return 0
        if isinstance(self.mlp, DenseMlp):
            return self.mlp.intermediate_size
        routed = self.mlp.experts_per_token * self.mlp.intermediate_size
        return routed + self.mlp.shared_size + self.mlp.dense_size


class LayerStack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Layers that are not all alike, or not of the ordinary kind.

    ``order`` holds the index of each layer's group, first layer first. ``head`` is the output
    head's data type. ``embedding_values`` are parameters of further embeddings, ``vectors`` those
    outside of layers that are in no matrix named here. ``said`` is what is left out or differs from
    what a server does, one sentence each.
    """

    groups: tuple[LayerGroup, ...]
    order: tuple[int, ...]
    head: str = "bfloat16"
    vectors: int = 0
    embedding_values: int = 0
    said: tuple[str, ...] = ()

    def within(self, layers: tuple[int, int] | None) -> tuple[int, ...]:
        """How many layers of each group lie in the range ``layers`` (None: in the model)."""
        begin, end = layers or (0, len(self.order))
        counts = [0] * len(self.groups)
        for index in self.order[begin:end]:
            counts[index] += 1
        return tuple(counts)

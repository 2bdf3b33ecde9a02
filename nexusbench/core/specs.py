"""Descriptions of models, GPUs and devices: frozen, complete, one owner each."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from nexusbench.core.batch import Split
from nexusbench.core.bounds import (
    ClockGain,
    Curve,
    Efficiency,
    Fraction,
    Interference,
    LinkRate,
    Micros,
    NumberBounds,
    SmCount,
    Throughput,
)
from nexusbench.core.kernel_constants import KernelConstants
from nexusbench.core.layers import (
    DTYPE_BYTES as DTYPE_BYTES,
)
from nexusbench.core.layers import (
    DenseMlp,
    ExpertsMlp,
    LayerDtypes,
    LayerGroup,
    LayerStack,
)
from nexusbench.core.layers import (
    Linear as Linear,
)
from nexusbench.core.mixers import FullAttention


class Dtypes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Data type per tensor class; names are keys of DTYPE_BYTES."""

    weights: str = "bfloat16"
    embeddings: str = "bfloat16"  # input embedding and output head
    kv: str = "bfloat16"
    activations: str = "bfloat16"


class MoeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mixture of experts: a token uses ``experts_per_token`` of ``num_experts`` routed ones."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int  # of one routed expert
    num_shared_experts: int = 0


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoder-only transformer.

    Without a ``stack`` all layers are alike: grouped-query attention over the whole context and
    SwiGLU (or ``moe``), all weights of them in one data type (Llama, Qwen). With one, the stack
    says what the layers are, and ``num_heads`` to ``intermediate_size`` are those of its first
    layer with attention (0 where no layer has them) and of its widest feed-forward part, ``moe`` is
    None and ``dtypes.weights`` what most of the weights have. :attr:`groups` serves both.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    tie_word_embeddings: bool = False
    dtypes: Dtypes = Dtypes()
    moe: MoeSpec | None = None
    source: str = ""
    # Left out of files where there is none, so that they are those of before.
    stack: LayerStack | UnsetType = UNSET

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The layers by kind, of a model with a stack and of one without."""
        if self.stack is not UNSET:
            return self.stack.groups
        mixer = FullAttention(
            num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim
        )
        mlp: DenseMlp | ExpertsMlp = DenseMlp(intermediate_size=self.intermediate_size)
        if self.moe is not None:
            moe = self.moe
            mlp = ExpertsMlp(
                num_experts=moe.num_experts, experts_per_token=moe.experts_per_token,
                intermediate_size=moe.intermediate_size,
                shared_size=moe.num_shared_experts * moe.intermediate_size,
            )  # fmt: skip
        weights = self.dtypes.weights
        each = LayerDtypes(
            attention=weights, dense=weights, experts=weights, shared=weights, router=weights
        )
        return (LayerGroup(count=self.num_layers, mixer=mixer, mlp=mlp, dtypes=each),)

    @property
    def kv_bytes_per_token(self) -> float:
        """KV-cache bytes of one token of the context: keys and values (or what stands for them) of
        the layers that keep all of them. See :attr:`index_bytes_per_token` and the two below it.
        """
        if self.stack is UNSET:
            values = 2 * self.num_layers * self.num_kv_heads * self.head_dim
            return values * DTYPE_BYTES[self.dtypes.kv]
        each = (group.count * group.mixer.kv_values for group in self.groups if group.mixer)
        return sum(each) * DTYPE_BYTES[self.dtypes.kv]

    @property
    def index_bytes_per_token(self) -> float:
        """Bytes of the keys of sparse attention's indexers for one token of the context."""
        return sum(group.count * group.mixer.index_bytes for group in self.groups if group.mixer)

    @property
    def window_bytes_per_sequence(self) -> float:
        """KV-cache bytes of one sequence in layers with a window, once that is full."""
        each = (group.count * group.mixer.window_values for group in self.groups if group.mixer)
        return sum(each) * DTYPE_BYTES[self.dtypes.kv]

    @property
    def state_bytes_per_sequence(self) -> float:
        """Bytes of one sequence's states, whatever its length."""
        return sum(group.count * group.mixer.state_bytes for group in self.groups if group.mixer)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The dense layers of the decoder stack, without the output head."""
        hidden = self.hidden_size
        return tuple(linear for group in self.groups for linear in group.linears(hidden))

    @property
    def wide(self) -> int:
        """Values between the two products of the widest feed-forward layer, for one token."""
        return max(group.wide for group in self.groups)

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding, the output head and further embeddings."""
        heads = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return heads + (0 if self.stack is UNSET else self.stack.embedding_values)

    @property
    def num_parameters(self) -> int:
        """All parameters: dense layers, embedding and head. Of a model without a stack norms and
        biases are left out, < 0.1 %.
        """
        layers = sum(group.parameters(self.hidden_size) for group in self.groups)
        return layers + self.embedding_parameters + self._vectors

    @property
    def active_parameters(self) -> int:
        """Those that one token uses: of the embeddings its rows only count as the whole (as model
        cards do), of the experts the routed ones that it is sent to.
        """
        layers = sum(group.active_parameters(self.hidden_size) for group in self.groups)
        return layers + self.embedding_parameters + self._vectors

    @property
    def weight_bytes(self) -> float:
        """Bytes of all parameters in their data types."""
        heads = self.embedding_parameters
        if self.stack is UNSET:
            dense = self.num_parameters - heads
            return (
                dense * DTYPE_BYTES[self.dtypes.weights]
                + heads * DTYPE_BYTES[self.dtypes.embeddings]
            )
        head = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        total = head * DTYPE_BYTES[self.head_dtype]
        total += (heads - head) * DTYPE_BYTES[self.dtypes.embeddings]
        vectors = self._vectors
        for group in self.groups:
            vectors += group.count * group.vectors
            for linear in group.linears(self.hidden_size):
                total += linear.inputs * linear.outputs * linear.count * linear.bytes_each
        return total + vectors * DTYPE_BYTES[self.dtypes.activations]

    @property
    def head_dtype(self) -> str:
        """Data type of the output head: the embedding's where it is the same matrix."""
        if self.stack is UNSET or self.tie_word_embeddings:
            return self.dtypes.embeddings
        return self.stack.head

    @property
    def _vectors(self) -> int:
        return 0 if self.stack is UNSET else self.stack.vectors


class SimConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Constants of the simulated device's physics that no data sheet gives; each GPU file states
    their source.

    The two curves hold (share of SMs, share of the attainable HBM bandwidth) points, piecewise
    linear: of plain streams (element-wise kernels, keys and values), and of the weights of a GEMM.
    """

    dense_efficiency: Efficiency  # attainable share of peak FLOP/s in a full wave of large tiles
    attention_efficiency: Efficiency  # the same of attention tiles, softmax apart
    bandwidth_efficiency: Efficiency  # attainable share of HBM peak with all SMs streaming
    bandwidth_curve: Curve
    kernel_us: Micros  # an element-wise kernel inside a step (launch from a graph, ramp, tail)
    step_overhead_us: Micros  # host and launch time of a step that the GPU waits for
    # How much longer memory-bound operators take beside a neighbour that keeps the tensor cores of
    # all SMs busy (and with them L2 and the interconnect), by what the neighbour computes:
    dense_interference: Interference
    attention_interference: Interference
    stream_interference: Interference  # compute-bound ones beside one that uses all HBM bandwidth
    # On SMs that two launches both claim: 0 = they overlap as far as their demands allow,
    # 1 = their kernels only alternate (physics/sharing.py).
    turn_taking: Fraction
    jitter: Fraction  # half-width of the seeded uniform noise on a step, as a share of it
    weights_curve: Curve = ()  # empty: as bandwidth_curve
    # After which of a kernel's waves of tiles the neighbour's tiles get in, where they alternate:
    # 1 = after each, 0 = after its last. In between, after that share of them.
    wave_yield: Fraction = 1.0
    # How much faster tensor cores run while half of the SMs or fewer compute: power and clock.
    clock_gain: ClockGain = 0.0
    # A GEMM (physics/gemm.py, Gemm).
    dense_launch_us: Micros = 3.0  # fixed time of one
    dense_wave_share: Fraction = 0.2  # 1 = whole waves of tiles only, 0 = a last wave is no loss
    dense_overlap: Fraction = 0.1  # share of the shorter of compute and memory time that adds up
    dense_depth_us: Micros = 0.2  # latency of walking 1,000 of the inner dimension
    dense_epilogue_us: Micros = 1.0  # prologue and epilogue of a wave of the largest tiles
    dense_split_us: Micros = 1.5  # reduction after splitting the inner dimension
    # Attention (physics/attention.py, Attention).
    # FlashAttention of that generation; "contiguous": version 2 on keys that are not paged;
    # "trtllm": TensorRT-LLM's for Blackwell.
    attention_kernel: Literal["fa2", "fa3", "contiguous", "trtllm"] = "fa2"
    attention_launch_us: Micros = 6.0  # fixed time of a layer's attention, KV write included
    attention_tile_us: Micros = 1.5  # prologue and epilogue of one tile of query rows
    attention_block_us: Micros = 0.5  # softmax of one tile and key block beside its products
    attention_empty_us: Micros = 0.3  # a thread block that finds no row to do (fa2)
    attention_tail: Fraction = 0.8  # share of the last wave, and of the longest tile, that adds up
    attention_overlap: Fraction = 0.3  # as dense_overlap
    # SM time of writing a token of 512 values to the cache; UNSET: it is within the launch. So
    # descriptions of GPUs without it are as they were.
    attention_write_us: Micros | UnsetType = UNSET
    attention_combine_us: Micros = 3.5  # merging the parts of a decode whose keys were split
    attention_swap_us: Micros = 3.5  # regrouping the query heads of a decode batch
    # GB/s of keys and values that one SM takes in decodes, and where a contiguous kernel does not
    # split them.
    attention_sm_gbps: Throughput = 1e6
    attention_unsplit_gbps: Throughput = 1e6
    # Only for kernels that a benchmark repeats on the same operands; in a step the other layers
    # evict them. The rate at which operands in L2 are read, and the share of L2 that holds them.
    l2_gbps: Throughput = 2000.0
    l2_share: Annotated[float, NumberBounds(least=0.001, most=1.0)] = 0.5


# A curve has a range, too: of a factor on the share of SMs that draws a given share of bandwidth
# (1 = as in the file, 1.5 = half as many SMs again are needed).
CURVES = ("bandwidth_curve", "weights_curve")
CurveFactor = Annotated[float, NumberBounds(least=0.01, most=100.0)]


class GpuSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GPU as published (and, for the simulator, its constants). ``sources`` names the origin of
    each number.

    ``ranges`` holds (lowest, highest) of contested constants, by their key in ``sim``; that of
    one of CURVES is of a CurveFactor. The value in use lies inside. ``kernels`` are the
    constants of low-precision products and experts; without them, those of another GPU stand for
    them (physics/precisions.py). A file may leave out what a default of its architecture stands for
    (physics/architectures.py); the spec has it all.
    """

    name: str
    num_sms: SmCount
    clock_mhz: Annotated[float, NumberBounds(least=1.0)]  # boost clock that the peak refers to
    peak_tflops: Throughput  # dense BF16 with FP32 accumulation, no sparsity
    hbm_gib: Annotated[float, NumberBounds(least=0.01)]
    hbm_gbps: Throughput  # GB/s, 1e9 bytes
    l2_mib: Annotated[float, NumberBounds(least=0.001)]
    sm_minimum: int  # smallest green-context partition
    sm_multiple: int  # and its granularity
    link_gbps: LinkRate  # to another GPU, one direction, GB/s: NVLink or PCIe
    link_latency_us: Micros
    sim: SimConstants
    sources: dict[str, str]
    host_gbps: LinkRate = 25.0  # to host memory, one direction: PCIe 4.0 x16 as attained
    # Its kind of link (data/links), for collectives; without one that of the nearest rate.
    link: str | UnsetType = UNSET
    ranges: dict[str, tuple[float, float]] = {}
    # Left out of files where there are none, so that they are those of before.
    kernels: KernelConstants | UnsetType = UNSET
    # Sentences that every screen says before a figure of this GPU, simulated.
    caveats: tuple[str, ...] | UnsetType = UNSET

    @property
    def warnings(self) -> tuple[str, ...]:
        """``caveats``, none where the file has none."""
        return () if self.caveats is UNSET else self.caveats


def with_used_kernels(gpu: GpuSpec, model: ModelSpec, gpus: int = 1) -> GpuSpec:
    """``gpu`` without the constants of kernels that ``model`` runs none of.

    A 16-bit model of full attention over a 16-bit KV cache, without experts, is timed the same
    whatever they are, and one on a single GPU whatever its link is.
    """
    if gpus == 1:
        gpu = msgspec.structs.replace(gpu, link=UNSET)
    plain = all(
        type(group.mixer) in (FullAttention, NoneType) and isinstance(group.mlp, DenseMlp | None)
        for group in model.groups
    )
    types = {
        group.dtypes.of(one)
        for group in model.groups
        for one in group.projections(model.hidden_size)
    }
    wide = {*types, model.dtypes.kv} <= {"bfloat16", "float16", "float32"}
    return msgspec.structs.replace(gpu, kernels=UNSET) if wide and plain else gpu


class DeviceSpec(msgspec.Struct, frozen=True):
    """What is visible of a device to the layers above.

    ``splits`` are the legal splits for the partitions (prefill, decode), growing prefill share;
    ``whole`` gives all SMs to the partition ``all``. ``depth`` is how many batches a partition may
    queue. ``kv_bytes`` is the memory left for KV blocks after weights and reserves.
    """

    name: str
    kind: str  # sim, cpu or cuda
    simulated: bool
    num_sms: int
    splits: tuple[Split, ...]
    whole: Split
    depth: int
    kv_bytes: float
    num_layers: int  # of the model; a launch can be restricted to some of them
    tensor_parallel: int = 1
    stages: int = 1  # of a pipeline, which has as many batches in flight
    makes_tokens: bool = False  # real ones: what a request generates is not known beforehand
    stop_tokens: tuple[int, ...] = ()  # of the model, for devices that make tokens
    # KV pools: one for each GPU (or group in lockstep), and last the host's if it can swap.
    # ``pool_of`` names each partition's GPU where there are several.
    pools: tuple[str, ...] = ("gpu",)
    pool_of: dict[str, int] = {}
    host_bytes: float = 0.0  # host memory for swapped KV; 0: this device does not swap
    # Whether blocks of layers with a window are freed once it has passed them; else they keep all.
    frees_windows: bool = False
    # Whether decodes of unequal lengths take longer: then batches say what they know of lengths.
    times_lengths: bool = False
    kv_token_bytes: float = 0.0  # what it keeps of a token; 0: as the model says
    longest_context: int = 0  # tokens of a sequence that it can compute; 0: all of the model's

    @property
    def num_gpus(self) -> int:
        """GPUs (or groups in lockstep) that have a KV pool of their own."""
        return len(self.pools) - (self.host_bytes > 0)

    @property
    def host(self) -> int | None:
        """The host's pool, or None."""
        return len(self.pools) - 1 if self.host_bytes > 0 else None

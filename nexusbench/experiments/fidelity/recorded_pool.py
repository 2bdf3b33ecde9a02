"""How many blocks of ours a recorded pool of vLLM's has."""

from __future__ import annotations

from nexusbench.core.errors import UsageError
from nexusbench.core.kv_layout import kv_layout
from nexusbench.core.mixers import FullAttention, WindowAttention
from nexusbench.core.specs import DTYPE_BYTES, ModelSpec

# vLLM pads groups of layers to the largest of them where that is so much larger than the smallest
# at most (v1/core/kv_cache_utils.py); else it makes groups as large as the smallest.
_PADDED_TO_LARGEST = 1.25


def simulated_blocks(
    recorded: int, model: ModelSpec, gpus: int, block_size: int
) -> tuple[int, list[str]]:
    """Blocks (or pages) with as many bytes as ``recorded`` blocks of vLLM on ``gpus`` GPUs, and
    what has to be said of them.

    Where layers keep different tokens, vLLM's block is of one of its groups of equally many layers,
    for which it makes up layers that are missing. Raises UsageError where it changes the size of
    blocks, too: where layers keep states, entries or unequal heads.
    """
    layout = kv_layout(model, gpus)
    sizes = layout.paged(block_size)
    if sizes.is_uniform:
        return recorded, []
    kinds: dict[tuple[int, bool], int] = {}  # layers by window and whether it is of pieces
    values: set[int] = set()  # of a token in one layer
    for group in model.groups:
        mixer = group.mixer
        if mixer is None or (isinstance(mixer, FullAttention) and mixer.shares_kv):
            continue
        if not isinstance(mixer, FullAttention):
            raise _unknown(model, f"layers of {mixer.label}")
        kind = (0, False)
        if isinstance(mixer, WindowAttention):
            kind = (mixer.window, mixer.chunked)
        kinds[kind] = kinds.get(kind, 0) + group.count
        values.add(mixer.token_values * max(1, gpus // mixer.num_kv_heads))
    if len(values) > 1:
        raise _unknown(model, "layers with KV heads of different sizes")
    least, most = min(kinds.values()), max(kinds.values())
    layers = most if most < least * _PADDED_TO_LARGEST else least
    block = layers * values.pop() * DTYPE_BYTES[model.dtypes.kv] * block_size
    padded = sum(-count % layers for count in kinds.values())
    notes = []
    if padded:
        total = sum(kinds.values())
        notes.append(
            f"vLLM keeps KV for {padded} layers that are not there beside the {total} of "
            f"{model.name}, to make its groups equal; the simulated pool, of as many bytes, "
            "holds more requests"
        )
    return int(recorded * block // sizes.page_bytes), notes


def _unknown(model: ModelSpec, why: str) -> UsageError:
    return UsageError(
        f"the recording counts KV blocks of {model.name}, which has {why}: how many bytes vLLM's "
        "blocks of it have is not known. Leave num_gpu_blocks out of meta.json, and give "
        "--kv-blocks, or let memory decide"
    )

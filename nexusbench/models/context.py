"""The context that a config.json gives a decoder, extensions by YaRN and the like included."""

from __future__ import annotations

from nexusbench.models.document import ConfigDocument, shown

_MOST = 10**9


def context_of(config: ConfigDocument, default: int | None = None) -> int:
    """Tokens: ``max_position_embeddings``, or what YaRN (2309.00071) makes of the length that it
    extends. Raises InputError for a factor that is no number.

    Linear and dynamic scaling, llama3 and longrope leave the number as written: published configs
    hold the extended length.
    """
    longest = config.count("max_position_embeddings", default)
    for field in ("rope_scaling", "rope_parameters"):
        scaling = config.data.get(field)
        if not isinstance(scaling, dict):
            continue
        # Some families give each kind of layer parameters of its own.
        nested = [one for one in scaling.values() if isinstance(one, dict)]
        for one in nested or [scaling]:
            kind = one.get("rope_type", one.get("type"))
            if kind == "yarn":
                return _extended(config, field, one, longest)
    return longest


def _extended(config: ConfigDocument, field: str, scaling: dict[str, object], longest: int) -> int:
    factor = config.number(f"{field}.factor", 1.0, scaling)
    original = scaling.get("original_max_position_embeddings")
    if original is None:
        original = config.data.get("original_max_position_embeddings") or longest
    if isinstance(original, bool) or not isinstance(original, int) or not 0 < original <= _MOST:
        name = f"{field}.original_max_position_embeddings"
        raise config.error(name, f"is {shown(original)}", "Write a positive integer")
    length = int(original * factor)
    if not 0 < length <= _MOST:
        raise config.error(f"{field}.factor", f"is {shown(factor)}", "It makes no usable context")
    return length

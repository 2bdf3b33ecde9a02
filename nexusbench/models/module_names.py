"""Names of a decoder's modules, and what the names, globs and regular expressions of a quantiser's
lists match of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

# For each projection of core/layers.py the matrices that it is fused of, each under the names that
# checkpoints and servers give it, within its layer.
ModuleNames = Mapping[str, tuple[tuple[str, ...], ...]]


def gated_mlp(*places: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of gate and up in each of ``places``."""
    gates = ("gate_proj", "gate_up_proj", "w1")
    ups = ("up_proj", "gate_up_proj", "w3")
    return _each(places, gates), _each(places, ups)


def _each(places: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{place}.{name}" for place in places for name in names)


def module_names(
    attention: tuple[str, ...] = ("self_attn",),
    mlp: tuple[str, ...] = ("mlp",),
    sparse: tuple[str, ...] = ("mlp",),
) -> ModuleNames:
    """The names of a decoder whose attention, dense feed-forward part and experts lie in modules of
    those names.
    """
    shared = tuple(f"{place}.{name}" for place in sparse
                   for name in ("shared_experts", "shared_expert", "shared_mlp"))  # fmt: skip
    routed = tuple(f"{place}.experts.0" for place in sparse)
    downs = ("down_proj", "w2")
    up = _each(routed, ("up_proj", "w3"))
    return {
        "qkv": tuple(_each(attention, (f"{one}_proj", "qkv_proj")) for one in "qkv"),
        "attn_out": (_each(attention, ("o_proj",)),),
        "attn_gate": (_each(attention, ("g_proj", "gate_proj", "q_proj")),),
        "q": (_each(attention, ("q_proj",)),),
        "q_a": (_each(attention, ("q_a_proj", "wq_a", "fused_qkv_a_proj")),),
        "q_b": (_each(attention, ("q_b_proj", "wq_b")),),
        "kv_a": (_each(attention, ("kv_a_proj_with_mqa", "fused_qkv_a_proj")),),
        "kv_b": (_each(attention, ("kv_b_proj",)),),
        "kv": (_each(attention, ("kv_proj", "wkv")),),
        "out_a": (_each(attention, ("o_a_proj", "wo_a")),),
        "index_q": (_each(attention, ("indexer.wq_b", "indexer.q_b_proj", "index_q_proj")),),
        "index_k": (_each(attention, ("indexer.wk", "index_k_proj")),),
        "index_weights": (_each(attention, ("indexer.weights_proj", "indexers_proj")),),
        "gate_up": gated_mlp(*mlp),
        "up": (_each(mlp, ("up_proj", "w1", "fc1")),),
        "down": (_each(mlp, (*downs, "fc2")),),
        "router": ((*_each(sparse, ("gate", "router")), "router"),),
        "expert_gate_up": (_each(routed, ("gate_proj", "w1", "gate_up_proj")), up),
        "expert_up": (_each(routed, ("up_proj", "w1")),),
        "expert_down": (_each(routed, downs),),
        "shared_gate_up": gated_mlp(*shared),
        "shared_up": (_each(shared, ("up_proj",)),),
        "shared_down": (_each(shared, downs),),
        "latent_down": (_each(sparse, ("fc1_latent_proj",)),),
        "latent_up": (_each(sparse, ("fc2_latent_proj",)),),
    }


USUAL = module_names()
HEADS = ("lm_head", "head", "output")
# Modules that may stand before a decoder's "layers"; another is of a vision tower or a draft head.
_ROOTS = {
    "model", "language_model", "text_model", "backbone", "transformer", "decoder", "llm", "thinker",
    "*", "",
}  # fmt: skip
# Words in the names of other modules than a decoder's.
_OTHERS = re.compile(
    r"visual|vision|audio|image|multi_modal|mm_projector|merger|talker|(^|\.)mtp(?![a-z])"
)
# Of regular expressions what globs can say: names, any letter, any text, choices, begin and end.
_SIMPLE = re.compile(r"\^?((?:[\w-]|\\\.|\.\*?(?![+?{*]))*)(\$?)", re.ASCII)
_CHOICE = re.compile(r"\((?:\?:)?([\w.\\|-]*)\)(?![+?*{])", re.ASCII)
_MOST_CHOICES = 64
_LAYER = re.compile(r"(?:(.*)[.?])?layers\.(\d{1,9})(?:\.(.*))?", re.DOTALL)


def as_globs(name: str) -> list[str] | None:
    """A module's name, glob or simple regular expression as globs; None if it is neither."""
    if not name.startswith("re:"):
        known = not re.search(r"[\[\](){}|+\\^$]", name) and len(name) <= 200
        return [re.sub(r"\*{2,}", "*", name)] if known else None
    # Not run as an expression: one that a folder brings along may take for ever.
    made = [name[3:]]
    while any("(" in text for text in made):
        more: list[str] = []
        for text in made:
            choice = _CHOICE.search(text)
            if choice is None:
                return None
            for one in choice[1].split("|"):
                more.append(text[: choice.start()] + one + text[choice.end() :])
        made = more
        if len(made) > _MOST_CHOICES:
            return None
    globs = []
    for text in made:
        found = _SIMPLE.fullmatch(text)
        if found is None or len(text) > 200:
            return None
        glob = found[1].replace("\\.", "\0").replace(".*", "*").replace(".", "?")
        glob = glob.replace("\0", ".") + ("" if found[2] else "*")
        globs.append(re.sub(r"\*{2,}", "*", glob))
    return globs


def is_wild(glob: str) -> bool:
    """Whether it stands for more than one name."""
    return "*" in glob or "?" in glob


def matches(glob: str, module: str) -> bool:
    """Whether ``glob`` names ``module``, a part of its path, or what it is part of."""
    return fnmatchcase(f".{module}.", f"*.{glob}.*")


class Selector:
    """The modules that a list names: of one layer each, or by a pattern of any.

    With ``loose`` a name that is no pattern also stands for modules that begin with it (as
    transformers takes it), with ``anywhere`` for those that hold it (as AutoAWQ does).
    """

    def __init__(self, loose: bool = False, anywhere: bool = False) -> None:
        self._loose, self._anywhere = loose, anywhere
        self._within: dict[int, list[str]] = {}
        self._patterns: list[str] = []
        self._experts: dict[tuple[int, str], set[int]] = {}

    def add(self, glob: str) -> None:
        """One name or glob. Names of other towers than the decoder are left out."""
        if _OTHERS.search(glob):
            return
        text, number = glob, None
        expert = re.search(r"experts\.(\d{1,6})(?=\.|$)", glob)
        if expert is not None:
            number = int(expert[1])
            text = f"{glob[: expert.start(1)]}0{glob[expert.end(1) :]}"
        found = _LAYER.fullmatch(text)
        if found is None:
            root = re.match(r"(.*?)[.?]?layers[.?]", text)
            if root is None:
                self._patterns.append(text)
            elif _is_decoder(root[1]):
                self._patterns.append(text[root.start() + len(root[1]) :].lstrip(".?"))
            return
        if not _is_decoder(found[1] or ""):
            return
        layer, rest = int(found[2]), found[3] or ""
        if number is not None:
            self._experts.setdefault((layer, rest), set()).add(number)
            if len(self._experts[layer, rest]) > 1:
                return
        self._within.setdefault(layer, []).append(rest)

    @property
    def patterns(self) -> int:
        """How many globs are held against every module."""
        return len(self._patterns)

    def __bool__(self) -> bool:
        return bool(self._within or self._patterns)

    def some_experts(self, layers: int, experts: int) -> int | None:
        """A layer of which only some experts are named, or None."""
        for (layer, _), numbers in self._experts.items():
            if layer < layers and numbers != set(range(experts)):
                return layer
        return None

    def names(self, layer: int, module: str) -> bool:
        """Whether ``module`` of that layer is one of them."""
        for rest in self._within.get(layer, ()):
            if not rest or matches(rest, module) or self._is_part(rest, module):
                return True
        whole = f"layers.{layer}.{module}"
        return any(matches(g, whole) or self._is_part(g, whole) for g in self._patterns)

    def names_head(self) -> bool:
        """Whether the output head is one of them."""
        return any(
            matches(glob, f"model.{head}") or matches(glob, f"language_model.{head}")
            for glob in self._patterns
            for head in HEADS
        )

    def _is_part(self, name: str, module: str) -> bool:
        if is_wild(name):
            return False
        # Servers ask for all experts at once, not for the matrices of one.
        if self._anywhere and name in re.sub(r"(\.experts)\..*", r"\1", module):
            return True
        return self._loose and any(one.startswith(name) for one in (f"model.{module}", module))


def _is_decoder(root: str) -> bool:
    return all(part in _ROOTS for part in re.split(r"[.?]", root))

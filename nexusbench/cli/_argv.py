"""vLLM's ways of writing that Click does not know: ``--goodput ttft:500 tbt:50``, and two flags
whose second names would leave a screen of 80 columns no room for the first.
"""

from __future__ import annotations

import re

# ``ttft:p99<2000`` and its spellings, as metrics/slo.py reads them.
STATISTIC_BOUND = re.compile(r"[a-z0-9_]+:[a-z][a-z0-9.]*(<=|<|:|=)[0-9.eE+-]+")

_PLAIN = {
    "--enable-prefix-caching": "--prefix-caching",
    "--no-enable-prefix-caching": "--no-prefix-caching",
}


def plain_names(arguments: list[str]) -> list[str]:
    """``arguments`` with our names of flags for vLLM's, up to a ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [_PLAIN.get(argument, argument) for argument in arguments[:end]] + arguments[end:]


def expand_goodput(arguments: list[str]) -> list[str]:
    """Repeat ``--goodput`` before each further ``name:number`` or ``name:p99<number`` after it.

    A trace path is not mistaken for a bound: it would have to be a word, a colon and a number.
    """
    expanded: list[str] = []
    listing = False
    for position, argument in enumerate(arguments):
        if argument == "--":
            return expanded + arguments[position:]
        if listing and _is_bound(argument):
            if expanded[-1] != "--goodput":
                expanded.append("--goodput")
        else:
            listing = argument == "--goodput" or argument.startswith("--goodput=")
        expanded.append(argument)
    return expanded


def _is_bound(text: str) -> bool:
    if STATISTIC_BOUND.fullmatch(text):
        return True
    name, colon, number = text.partition(":")
    if not colon or not name.isidentifier():
        return False
    try:
        float(number)
    except ValueError:
        return False
    return True

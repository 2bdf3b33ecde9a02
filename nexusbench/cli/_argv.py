"""vLLM's ``--goodput ttft:500 tbt:50``: several values after one flag, unknown to Click."""

from __future__ import annotations


def expand_goodput(arguments: list[str]) -> list[str]:
    """Repeat ``--goodput`` before each further ``name:number`` that follows it.

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
    name, colon, number = text.partition(":")
    if not colon or not name.isidentifier():
        return False
    try:
        float(number)
    except ValueError:
        return False
    return True

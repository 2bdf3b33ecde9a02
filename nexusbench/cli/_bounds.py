"""What a flag's value may be: callbacks and parsers for Typer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import typer

from nexusbench.core.config import out_of_bounds
from nexusbench.core.registry import did_you_mean


def bounded(param: typer.CallbackParam, value: float | None) -> float | None:
    """A Typer callback: None, or what a config takes as its field of the flag's name."""
    hint = None if value is None else out_of_bounds(param.name or "", value)
    if hint is not None:
        # An integer of 400 digits is no float.
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        raise typer.BadParameter(f"{shown} is out of bounds. {hint}.")
    return value


def positive(param: typer.CallbackParam, value: float | None) -> float | None:
    """A Typer callback: None, or a finite number above 0 within bounds."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value:g} is not a finite number above 0.")
    return bounded(param, value)


def not_negative(param: typer.CallbackParam, value: float | None) -> float | None:
    """A Typer callback: None, or a finite number of at least 0 within bounds."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value:g} is not a finite number of at least 0.")
    return bounded(param, value)


def share(value: float) -> float:
    """A Typer callback: a share, above 0 and at most 1."""
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g} is not a share above 0 and at most 1.")
    return value


def one_of(*words: str) -> Callable[[str], str]:
    """A Typer callback for one of some words."""

    def check(value: str) -> str:
        if value not in words:
            raise typer.BadParameter(f"'{value}' is unknown. {did_you_mean(value, list(words))}")
        return value

    return check


def folder(text: object) -> Path:
    """A Typer parser: a path, but not the empty one, which would silently be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("it is empty. Write . for the current folder.")
    return Path(str(text))

"""The colours of pages and pictures, light and dark; told apart without red and green."""

from __future__ import annotations

# Name -> (light, dark). The lines of runs have 3:1 at least against the page, texts 4.5:1.
PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", "#15181b"),
    "surface": ("#f5f6f8", "#1d2125"),
    "ink": ("#191c20", "#e8eaed"),
    "text": ("#464d55", "#b6bdc5"),
    "muted": ("#68717b", "#8f98a2"),
    "rule": ("#dde1e6", "#333a41"),
    "grid": ("#eaedf0", "#272c32"),
    "best": ("#e3f1ec", "#17362c"),
    "best-ink": ("#0a5a41", "#74dcb4"),
    "warn": ("#fff3d1", "#392f12"),
    "warn-ink": ("#634600", "#f3d182"),
    "focus": ("#1a66d6", "#79b0ff"),
    "run-0": ("#0072b2", "#56b4e9"),
    "run-1": ("#d55e00", "#ff9248"),
    "run-2": ("#008a64", "#2fd3a0"),
    "run-3": ("#a63d8c", "#e79cd3"),
    "run-4": ("#8a6d00", "#e8c547"),
    "run-5": ("#5457c4", "#a9acff"),
    "prefill": ("#dd9a1c", "#d99a2b"),
    "prefill-area": ("#efcb85", "#94702c"),
    "decode-area": ("#8fc1d5", "#2d687d"),
    "mixed-area": ("#c3b6df", "#665690"),
    "decode": ("#2b86a8", "#3f97b8"),
    "mixed": ("#7f6bb0", "#9d8bcd"),
}


def variables(dark: bool) -> str:
    """The palette as CSS custom properties."""
    return "".join(f"--{name}:{pair[dark]};" for name, pair in PALETTE.items())

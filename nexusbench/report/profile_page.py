"""The page of profiles: what more SMs give each phase, and what each phase costs the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from nexusbench.core.documents import JsonObject
from nexusbench.core.parts import parts_of, unit_of
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import (
    POINTS_FILE,
    PROFILE_FILE,
    Profile,
    load_profile,
    profile_path,
    read_points,
)
from nexusbench.profiling.facts import ProfileFacts, stored_facts
from nexusbench.report.escape import plain_lines
from nexusbench.report.page import render
from nexusbench.report.profile_figures import PHASES, groups_of


class Sheet(msgspec.Struct):
    """One profile with its points."""

    folder: Path
    profile: Profile
    points: list[Point]
    facts: ProfileFacts


def is_profile(name: str) -> bool:
    """A folder or file that a sweep has written."""
    path = Path(name)
    return (path.is_dir() and (path / PROFILE_FILE).is_file()) or path.name == PROFILE_FILE


def read_sheet(name: str) -> Sheet:
    """A profile and its points. Raises InputError for anything but these."""
    path = Path(name)
    profile = load_profile(path)
    points = read_points(profile_path(path).parent / POINTS_FILE, profile.points_sha256)
    return Sheet(profile_path(path).parent, profile, points, stored_facts(profile.facts))


def headline(sheet: Sheet) -> str:
    """Where each phase stops to profit, and what they cost each other, in one sentence."""
    facts, total = sheet.facts, sheet.profile.fingerprint.num_sms
    unit, parts = parts_of(sheet.profile.fingerprint.device), []
    for phase in PHASES:
        found = [f for f in facts.saturation if f.phase == phase and f.operators == "step"]
        if found:
            sms = found[0].within_5
            parts.append(f"{phase} {sms} of {total} {unit} ({100 * sms / total:.0f} %)")
    text = f"Within 5 % of full speed, alone: {', '.join(parts)}" if parts else ""
    costs = []
    for phase in PHASES:
        slow = [row.slowdown for row in facts.contention if row.phase == phase]
        if slow:
            costs.append(f"{phase} takes {min(slow):.2f} to {max(slow):.2f} times as long")
    beside = f"beside the other phase, on the same {unit}, {' and '.join(costs)}" if costs else ""
    whole = "; ".join(part for part in (text, beside) if part)
    return (
        f"{whole[:1].upper()}{whole[1:]}." if whole else f"Nothing was measured on several {unit}."
    )


def profiles_page(sheets: Sequence[Sheet]) -> str:
    """The page of some profiles, one below the other."""
    shown: JsonObject = {}
    parts = []
    for number, sheet in enumerate(sheets):
        groups = groups_of(sheet.profile, sheet.points, sheet.facts)
        for group in groups:
            for chart in group.charts:
                shown[f"{number}-{chart.name}"] = msgspec.to_builtins(chart.figure)
        parts.append(_part(number, sheet, groups))
    simulated = [sheet.profile.fingerprint.simulated for sheet in sheets]
    names = dict.fromkeys(_name(sheet) for sheet in sheets)
    content = {
        "title": f"Profile of {', '.join(names)}",
        "subtitle": f"Latency over {_parts(sheets)}, contention between prefill and decode, "
        "fitted cost models",
        "simulated": any(simulated),
        "measured": not all(simulated),
        "parts": parts,
    }
    return render("profiles.html.j2", content, shown)


def _parts(sheets: Sequence[Sheet]) -> str:
    """What the devices have more or fewer of."""
    found = (parts_of(sheet.profile.fingerprint.device) for sheet in sheets)
    return " and ".join(dict.fromkeys(found))


def _name(sheet: Sheet) -> str:
    identity = sheet.profile.fingerprint
    return f"{identity.model} on {identity.device}"


def _part(number: int, sheet: Sheet, groups: Sequence[Any]) -> JsonObject:
    from markupsafe import escape

    profile, facts = sheet.profile, sheet.facts
    identity = profile.fingerprint
    document = msgspec.to_builtins(profile)
    # The page draws these; what is left is what the profile was made of.
    for key in ("facts", "fits", "splits"):
        document.pop(key)
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    return {
        "number": number,
        "name": _name(sheet),
        "simulated": identity.simulated,
        "headline": headline(sheet),
        "saturation": facts.saturation,
        "num_sms": identity.num_sms,
        "parts": parts_of(identity.device),
        "scores": [
            (fit.cost_model, fit.num_fitted, score)
            for fit in profile.fits
            for score in fit.scores
            if score.sms == "all"
        ],
        "groups": groups,
        "facts": [
            ("device", f"{identity.device}: {profile.gpu.name}, {identity.num_sms} "
                       f"{unit_of(identity.device)}"),
            ("model", f"{identity.model}, tensor parallel over {identity.tensor_parallel}"),
            ("sweep", f"{profile.num_points:,} points, {profile.effort}, seed {profile.seed}"),
            ("made", f"{profile.created} with nexusbench {profile.nexusbench}"),
            ("warned", f"{facts.num_warned:,} points with a warning, {facts.num_outliers:,} "
                       f"outliers, {facts.num_discarded:,} samples discarded"),
            *(("note", note) for note in profile.notes),
            *((f"no {name}", reason) for name, reason in facts.reasons.items()),
            ("folder", str(sheet.folder)),
        ],
        "json": escape(plain_lines(text)),
    }  # fmt: skip

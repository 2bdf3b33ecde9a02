"""``--scheduler a,b:key=value,c``: lists of policies, checked before the first of them runs."""

from __future__ import annotations

from typing import Any

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import parse_options, split_spec


def split_policies(values: list[str], flag: str) -> list[str]:
    """Policy specs from one or more values of ``flag``.

    A comma separates policies, unless ``key=`` follows: then it goes on with the options of the
    policy before. Raises UsageError that names the flag.
    """
    specs: list[str] = []
    for value in values:
        begun = False
        for piece in value.split(","):
            piece = piece.strip()
            key, equals, _ = piece.partition("=")
            if equals and ":" not in key:
                if not begun:
                    raise UsageError(f"{flag} {value}: option '{piece}' follows no name")
                specs[-1] += ("," if ":" in specs[-1] else ":") + piece
            elif not piece or piece.startswith(":"):
                raise UsageError(f"{flag} '{value}' has an empty name. Write {flag} a,b,c")
            else:
                specs.append(piece.removesuffix(":"))
                begun = True
    return specs


def pair_policies(schedulers: list[str], partitioners: list[str]) -> list[tuple[str, str | None]]:
    """Each scheduler with its partitioner: none, one for all, or one each. Raises UsageError."""
    if len(partitioners) <= 1:
        partitioner = partitioners[0] if partitioners else None
        return [(scheduler, partitioner) for scheduler in schedulers]
    if len(partitioners) != len(schedulers):
        raise UsageError(
            f"--partitioner: {len(partitioners)} partitioners for {len(schedulers)} schedulers. "
            "Give one for all, or one for each in the same order"
        )
    return list(zip(schedulers, partitioners, strict=True))


def check_policies(pairs: list[tuple[str, str | None]], cost_model: str | None) -> None:
    """Refuse, before anything runs, names, options and pairs that cannot be.

    Raises UsageError or InputError that names the policy.
    """
    from nexusbench.costs.base import cost_models
    from nexusbench.partitioners.base import partitioners
    from nexusbench.schedulers.base import schedulers

    for scheduler, partitioner in pairs:
        policy = schedulers.create(scheduler)
        name, options = split_spec(partitioner or policy.default_partitioner)
        cls = partitioners.load(name)
        parse_options(cls.Options, options, f"partitioner '{name}'")
        if policy.partitions not in cls.serves:
            raise UsageError(
                f"--partitioner {name} cannot serve scheduler '{policy.name}', which runs on "
                f"partition {' and '.join(policy.partitions)}. {_hint(pairs, partitioners, policy)}"
            )
    if cost_model is None:
        return
    name, options = split_spec(cost_model)
    parse_options(cost_models.load(name).Options, options, f"cost model '{name}'")


def _hint(pairs: list[tuple[str, str | None]], partitioners: Any, policy: Any) -> str:
    """The partitioners that would do."""
    fitting = [
        name for name in partitioners.names() if policy.partitions in partitioners.load(name).serves
    ]
    hint = f"It can have: {', '.join(fitting)}"
    if len(pairs) > 1:
        hint += "; give one --partitioner for each scheduler, in the same order"
    return hint

"""How many images stand behind a number, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robustft.report.page.section import Records


def sizes(records: Records, roles: Sequence[str]) -> dict[str, list[int]]:
    """The n of every data set of these roles, each once, ascending; none where no line tells."""
    found: dict[str, set[int]] = {}
    for r in records:
        if r["role"] in roles:
            found.setdefault(r["dataset"], set()).update([] if r["n"] is None else [r["n"]])
    return {name: sorted(n) for name, n in found.items()}


def span(n: Sequence[int]) -> str:
    """ "360", or "359 to 360"."""
    if not n:
        return "unknown"
    low, high = min(n), max(n)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def named(records: Records, roles: Sequence[str], most: int = 4) -> str:
    """ "letters (n = 1,300) and inks (n = 200)", "A and B (n = 360 each)", or, of many, "10 sets
    (n = 360 each)"."""
    found = sizes(records, roles)
    if len(found) > most:
        each = span([n for values in found.values() for n in values])
        return f"{len(found)} sets (n = {each} each)"
    alike: dict[str, list[str]] = {}
    for name, n in found.items():
        alike.setdefault(span(n), []).append(name)
    return listed(
        f"{listed(names)} (n = {n}{' each' * (len(names) > 1)})" for n, names in alike.items()
    )


def listed(texts: Iterable[str]) -> str:
    """ "a, b and c"."""
    found = list(texts)
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def counted(records: Records, roles: Sequence[str]) -> str:
    """The images of these roles by role, and the seeds: "ID: Digits (n = 360). 3 seeds"."""
    heads = {"id": "ID", "ood": "OOD", "forgetting": "Other tasks", "geometry": "Images"}
    parts = [f"{heads[role]}: {text}" for role in roles if (text := named(records, (role,)))]
    seeds = len({r["seed"] for r in records})
    return "; ".join([*parts, f"{seeds} seed{'s' * (seeds > 1)}"])

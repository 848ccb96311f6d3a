"""`robustft recipes`: the published runs that `robustft train --recipe` takes."""

from __future__ import annotations

from dataclasses import dataclass

from robustft import recipes as known
from robustft.cli.options import setting
from robustft.errors import InputError


@dataclass(frozen=True)
class RecipesOptions:
    """List recipes with their first published row; `robustft train --recipe NAME --dry-run` shows
    one."""

    names: list[str] = setting(
        [], "Recipes, or beginnings of their names such as dive [default: all].", positional=True
    )


def recipes(options: RecipesOptions) -> None:
    """Carry out `robustft recipes`."""
    chosen = [
        name
        for name in known.names()
        if not options.names or any(name.startswith(start) for start in options.names)
    ]
    if not chosen:
        raise InputError(
            f"recipes: got {options.names[0]!r}, expected one that robustft recipes lists"
        )
    width = max(map(len, chosen))
    for name in chosen:
        recipe = known.load(name)
        print(f"{name:{width}}  {recipe.title}")
        if recipe.published:
            row = recipe.published[0]
            figures = ", ".join(f"{key} {value:g}" for key, value in row.figures.items())
            print(f"{'':{width}}  published: {row.row}: {figures} ({row.source})")

"""Templates: format strings with one "{}" for the class name, or functions of the class name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustft.data.text_files import filled_lines
from robustft.errors import InputError, InputTypeError

Template = str | Callable[[str], str]
Templates = Sequence[Template] | str | Path | None


def fill(template: Template, classname: str) -> str:
    """The text of one class. InputError if a function gives anything else than a text."""
    if not callable(template):
        return template.format(classname)
    text = template(classname)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"templates: {_name(template)}({classname!r}) gave {text!r}, not a text")
    return text


def check_template(template: Any, where: str = "templates") -> Template:
    """The template itself. InputError if a string has not exactly one place "{}" for the name."""
    if callable(template):
        checked: Template = template
        return checked
    if not isinstance(template, str):
        raise InputTypeError(
            f"{where}: got {template!r}, expected a string or a function of the class name"
        )
    try:
        places = template.format("\0").count("\0")
    except (IndexError, KeyError, ValueError, AttributeError):
        places = 0
    if places != 1:
        raise InputError(
            f"{where}: got {template!r}, expected text with one {{}} in it, where the class name "
            "goes"
        )
    return template


def read_templates(source: Templates) -> list[Template] | None:
    """Templates from a list, or from a text file with one a line; each checked, None stays None."""
    if source is None:
        return None
    if isinstance(source, (str, Path)):
        lines = filled_lines(Path(source))
        if not lines:
            raise InputError(f"{source}: templates: got none, expected at least one")
        return [check_template(line, f"{source}, line {n}") for n, line in lines]
    if len(source) == 0:
        raise InputError("templates: got none, expected at least one")
    return [check_template(template) for template in source]


def describe_templates(templates: Sequence[Template], classnames: Sequence[str]) -> list[str]:
    """A text for each template that stays the same between processes: a function by what it says
    of the classes, a string as it is."""
    return [
        "\n".join(fill(template, name) for name in classnames) if callable(template) else template
        for template in templates
    ]


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)

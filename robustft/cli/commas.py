"""Several texts in one, with commas between them, some of which may hold commas themselves.

What exists as a path stays whole, also with what stands about it in [NAME=][CORRUPTION:]PATH[:ROLE]
and NAME@ROOT; so does what stands in quotation marks, which may be a part of a text.
"""

from __future__ import annotations

import shlex

from robustft.cli.named import exists, is_known, parse
from robustft.errors import InputError


def split(text: str) -> list[str]:
    """The texts between commas. Errors: InputError for a quotation that does not end."""
    if "," not in text or _is_there(text):
        return [text]
    parts = _between(text)
    found: list[str] = []
    while parts:  # the longest beginning that is a path, else the first part
        ends = [n for n in range(len(parts), 1, -1) if _is_there(",".join(parts[:n]))]
        count = ends[0] if ends else 1
        found.append(",".join(parts[:count]))
        parts = parts[count:]
    return [part for part in found if part]


def split_sets(text: str) -> list[str]:
    """As `split`, of data sets. Errors: InputError also for a part that is none, which may be half
    of a name with a comma in it."""
    parts = split(text)
    lost = next((part for part in parts if not is_known(parse(part).spec)), None)
    if lost is None or len(parts) == 1:
        return parts
    raise InputError(f"got {lost!r} in {text!r}, which is no data set; {_HOW}")


_HOW = "quotation marks keep a comma in a name, as in 'new=\"a,b\"'"


def _is_there(text: str) -> bool:
    return exists(parse(text).spec)


def _between(text: str) -> list[str]:
    """The parts, without their quotation marks."""
    reader = shlex.shlex(text, posix=True, punctuation_chars=False)
    reader.whitespace, reader.quotes, reader.escape, reader.commenters = ",", '"', "", ""
    reader.whitespace_split = True
    try:
        return [part.strip() for part in reader]
    except ValueError:
        raise InputError(
            f"got {text!r}, in which a quotation mark opens and none closes; {_HOW}"
        ) from None

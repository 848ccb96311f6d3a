"""Names as tables, figures and terminals can take them: they come from folders and files of users.

A name is text, never markup: not matplotlib's (figures switch its mathematics off), not Markdown's,
not HTML's, and not a terminal's escape sequences.
"""

from __future__ import annotations

import re
import unicodedata

from robustft.readable import readable

# An underscore within a word is no emphasis.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|&$~])|(?<![^\W_])(_)|(_)(?![^\W_])")


def markdown(text: str) -> str:
    """Readable text that Markdown shows as it is, also in a cell of a table."""
    return _MARKDOWN.sub(lambda found: "\\" + found.group(0), readable(text))


def short(text: str, most: int = 32) -> str:
    """Readable text of at most `most` characters for a figure: the middle gives way."""
    text = readable(text)
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[head + 1 - most :]}"


def columns(text: str) -> int:
    """How many places `text` takes in a terminal: wide characters take two, marks none."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )

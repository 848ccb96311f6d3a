"""Names as tables, figures and terminals can take them: they come from folders and files of users.

A name is text, never markup: not matplotlib's (figures switch its mathematics off), not Markdown's,
not HTML's, and not a terminal's escape sequences.
"""

from __future__ import annotations

import re
import unicodedata

# Controls, lone surrogates, line and paragraph separators; of the format characters those that turn
# the direction of the text after them.
_ESCAPED = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
# An underscore within a word is no emphasis.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|&$~])|(?<![^\W_])(_)|(_)(?![^\W_])")


def readable(text: str) -> str:
    """`text` with what is no character to be seen written as Python would: "\\x1b", "\\udc80"."""
    return "".join(
        ascii(c)[1:-1] if c in _TURNING or unicodedata.category(c) in _ESCAPED else c for c in text
    )


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

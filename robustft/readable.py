"""Names as a terminal can take them: they come from folders and files of users."""

from __future__ import annotations

import unicodedata

# Controls, lone surrogates, line and paragraph separators; of the format characters those that turn
# the direction of the text after them.
_ESCAPED = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def readable(text: str) -> str:
    """`text` with what is no character to be seen written as Python would: "\\x1b", "\\udc80"."""
    return "".join(
        ascii(c)[1:-1] if c in _TURNING or unicodedata.category(c) in _ESCAPED else c for c in text
    )

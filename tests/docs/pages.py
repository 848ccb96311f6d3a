"""The Markdown pages of the repository, taken apart."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
)
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page):
    return str(page.relative_to(ROOT))


def text(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The fenced blocks of a language: each with the number of the line before it."""
    whole = text(page)
    return [
        (whole.count("\n", 0, found.start()) + 1, found[2])
        for found in _FENCE.finditer(whole)
        if found[1] == language
    ]


def prose(page):
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", _FENCE.sub("", text(page)))

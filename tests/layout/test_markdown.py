"""Prose in Markdown wraps at 100 columns; tables, code and what cannot be broken may be longer."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS = 100
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("tests/**/*.md")])


def too_long(text):
    """The numbers of lines of prose that are longer than that and could be broken."""
    found, fenced, indented, before = [], False, False, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        # Indented code: after an empty line, deeper than a list's text.
        indented = line.startswith("    ") and (indented or not before.strip()) and not fenced
        before = line
        prose = not (fenced or indented or line.lstrip().startswith(("|", "#", "<", "![")))
        if prose and len(line) > COLUMNS and re.search(r"\S\s+\S", line.lstrip(" -*0123456789.>")):
            found.append(number)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_wraps(page):
    assert too_long(page.read_text(encoding="utf-8")) == []


def test_long_lines_are_found_in_prose_alone():
    long = "word " * 30
    assert too_long(f"short\n{long}\n- {long}\n") == [2, 3]
    assert too_long(f"text\n\n    {long}\n\n```\n{long}\n```\n| {long} |\n{'x' * 200}\n") == []

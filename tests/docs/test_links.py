"""No link between pages is dead: the file is there, and so is the heading."""

import re

import pytest

from .pages import PAGES, ROOT, name, prose, text

LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")


def anchors(page):
    """The anchors of a page's headings as GitHub and the site make them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text(page), flags=16 | 8), 8):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def dead(page):
    found = []
    for target in LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or not there.is_relative_to(ROOT):
            found.append(f"{target}: no such file")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            found.append(f"{target}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_link_is_dead(page):
    assert dead(page) == []


def test_dead_links_are_found(tmp_path):
    page = ROOT / "docs" / "index.md"

    class Page:
        parent = page.parent

        @staticmethod
        def read_text(encoding):
            return "[a](nowhere.md) [b](training.md#nothing) [c](training.md#data) [d](http://x)"

    assert dead(Page) == ["nowhere.md: no such file", "training.md#nothing: no such heading"]


def test_every_page_is_linked_from_another():
    linked = set()
    for page in PAGES:
        targets = (target.partition("#")[0] for target in LINK.findall(prose(page)))
        linked |= {(page.parent / target).resolve() for target in targets if target} - {page}
    apart = {ROOT / "README.md", ROOT / "docs" / "index.md"}
    site = ROOT / "docs"
    pages = {p for p in PAGES if p.parent.name not in ("site", "reference")} - apart
    assert [name(page) for page in sorted(pages - linked)] == [], f"pages below {site}"

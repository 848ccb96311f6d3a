"""The documentation site: Sphinx with MyST, from these pages and the package's docstrings.

`make docs` builds it into build/docs; a warning is an error. Docstrings are plain text, in which
`code` stands in backticks and formulas are indented; below they are made into what Sphinx reads.
"""

import os
import re
import tomllib
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _PROJECT["name"]
author = _PROJECT["authors"][0]["name"]
copyright = author
release = version = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["conf.py"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "robustft"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e5f", "color-brand-content": "#0b6e5f"},
    "dark_css_variables": {"color-brand-primary": "#4fc3ae", "color-brand-content": "#4fc3ae"},
}

# Pages of the site that lie elsewhere in the repository.
_ELSEWHERE = {
    "site/readme": "README.md",
    "site/examples": "examples/README.md",
    "site/contributing": "CONTRIBUTING.md",
    "site/security": "SECURITY.md",
    "site/changelog": "CHANGELOG.md",
}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"(!\[[^\]]*\])\((?!\w+:)([^)\s]+)\)")


def _page(app, docname: str, source: list[str]) -> None:
    """Links between pages, wherever they lie in the repository, lead to pages of the site; the
    text of a link to any other file stays, without the link."""
    here = _ROOT / _ELSEWHERE.get(docname, f"docs/{docname}.md")
    place = (_ROOT / "docs" / docname).parent
    pages = {_ROOT / path: _ROOT / "docs" / f"{name}.md" for name, path in _ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], (here.parent / found[2]).resolve(), found[3] or ""
        page = pages.get(target, target)
        if page.suffix != ".md" or not page.is_file():
            return text
        return f"[{text}]({os.path.relpath(page, place)}{anchor})"

    def image(found: re.Match[str]) -> str:
        return f"{found[1]}({os.path.relpath((here.parent / found[2]).resolve(), place)})"

    text = here.read_text(encoding="utf-8") if docname in _ELSEWHERE else source[0]
    if docname == "index":  # its first * is all pages that it does not name
        named = set(re.findall(r"^[\w-]+$", text, re.MULTILINE)) | {"index"}
        rest = sorted(p.stem for p in here.parent.glob("*.md") if p.stem not in named)
        text = text.replace("\n*\n", "\n".join(["", *rest, ""]), 1)
    fences = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    fences[::2] = [_IMAGE.sub(image, _LINK.sub(link, part)) for part in fences[::2]]
    source[0] = "".join(fences)


_ARGUMENTS = re.compile(r"\s*(Args|Attributes):\s*$")


def _as_rst(lines: list[str]) -> list[str]:
    """A docstring's lines: formulas and tables as literal blocks, the rest as plain text."""
    found: list[str] = []
    arguments = False
    for paragraph in "\n".join(lines).split("\n\n"):
        text = [line for line in paragraph.split("\n") if line.strip()]
        begins = any(_ARGUMENTS.match(line) for line in text)
        # Arguments go on after an empty line, as long as it is indented.
        arguments = begins or (arguments and all(line[:1] == " " for line in text))
        formula = any(line[:1] == " " for line in text) and text[0][:2] != "- "
        if formula and not arguments:
            found += [".. code-block:: text", "", *("    " + line for line in text), ""]
        else:
            found += [*map(_plain, text), ""]
    return found


def _plain(line: str) -> str:
    """`code` as literal text, and characters that mean something to Sphinx escaped."""
    parts = line.split("`")
    for at, part in enumerate(parts):
        if at % 2 and at < len(parts) - 1:
            parts[at] = f"``{part}``" if part.strip() else part
        else:
            parts[at] = re.sub(r"(?<=\w)_(?!\w)|[*|\\]", r"\\\g<0>", part)
    return "".join(parts)


def _docstring(app, what: str, name: str, found, options, lines: list[str]) -> None:
    lines[:] = _as_rst(list(lines))


def setup(app) -> None:
    app.connect("source-read", _page)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon

"""Sections into one HTML file that loads nothing.

Names are text: everything that a template writes is escaped, and made readable first. Should
markup get in all the same, it runs nothing: the page's own Content-Security-Policy allows this
file's style and script, by their hashes, and images that the file itself holds.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import robustft
from robustft.optional import require
from robustft.report.page.section import Section
from robustft.report.text import readable

_TEMPLATES = Path(__file__).parent / "templates"


def render(title: str, sections: Sequence[Section]) -> str:
    """The HTML text. Errors: MissingExtraError without Jinja2."""
    jinja2 = require("jinja2", extra="plot")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_readable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = (_own(name) for name in ("page.css", "page.js"))
    safe = require("markupsafe", extra="plot").Markup
    return str(
        environment.get_template("page.html").render(
            title=title,
            version=robustft.__version__,
            sections=sections,
            style=safe(style),
            script=safe(script),
            policy=_policy(style, script),
        )
    )


def _readable(value: Any) -> Any:
    return readable(value) if type(value) is str else value  # a Markup is no name


def _own(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

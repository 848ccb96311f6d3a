"""The site is built without a warning, and links of pages outside docs/ lead somewhere."""

import re
import subprocess
import sys

import pytest

from .pages import ROOT

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
pytest.importorskip("furo")


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", "docs", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.resolve(): path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert "Uniform and greedy model soups" in pages[tmp_path / "site" / "site" / "changelog.html"]
    for path, html in pages.items():
        for target in re.findall(r'<a class="[^"]*internal[^"]*" href="([^"#]+)', html):
            assert (path.parent / target).resolve() in pages, (path, target)
    losses = pages[tmp_path / "site" / "reference" / "losses.html"]
    assert all(f'id="robustft.losses.{x}"' in losses for x in ("CLIPLoss", "DiVELoss"))

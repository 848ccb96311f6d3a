"""Names are text: whatever users call their folders and methods, the report shows just that."""

import html
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ElementTree

import pytest

from robustft.cli.app import run
from robustft.evaluate import append_result
from robustft.report import make_table, table, write_report
from robustft.report.text import columns, markdown, readable, short

from .test_report import line, parse, records

NAMES = [  # several traps in each: a report takes seconds
    "$\\foo$ a$b$c_{d}^ 100% \\",
    "\x1b[31mred\x1b[0m\x07 a\nb\tc\r \u202egnp.exe \udc80\ud83d",
    "<script>alert(1)</script> <img src=x onerror=alert(1)> &lt;b&gt; -- ]]> --",
    "*bold* _it_ `code` [x](http://y) ~~z~~ a|b \\|",
    "Öl & Wäßer “naïve” αβγ 数据集",
    "x" * 300,
]


def odd_records(name, seeds=1):
    """Every figure's records with `name` as data set, method and base."""
    renamed = {"Digits": name, "Letters": f"{name}2", "Noise": f"{name}-noise", "dive": name}
    out = []
    for r in records(seeds, ood=["Noise", "Fonts"]):
        r = dict(r)
        key = f"{r.get('dataset')}:top1"
        value = r.pop(key, None)
        for field in ("dataset", "method", "base"):
            if field in r:
                r[field] = renamed.get(r[field], r[field])
        if r["role"] not in ("ratio", "geometry"):
            r[f"{r['dataset']}:top1"] = value
        out.append(r)
    return out


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_shown_in_every_table_and_figure(tmp_path, name):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="no installed font")
        written = write_report(odd_records(name), tmp_path / "out", title=name)
    assert {"table.md", "report.html", "id-ood.svg", "geometry.png"} <= {p.name for p in written}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    shown = html.escape(readable(name)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    assert f"<h1>{shown}</h1>" in page
    assert f'<th scope="row">{shown}</th>' in page
    assert page.count("<script") == 1
    assert "<img" not in page
    for text in (page, (tmp_path / "out" / "table.md").read_text("utf-8")):
        assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"]
        assert "\u202e" not in text
    for path in written:
        if path.suffix == ".svg":
            ElementTree.parse(path)
    rows = (tmp_path / "out" / "table.md").read_text("utf-8").splitlines()
    cells = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}
    assert len(cells) == 1
    assert len({columns(row) for row in rows}) == 1


def test_the_command_prints_no_escape_sequences_and_takes_any_file(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a$b|c\udc80ö.jsonl"
    for name in ("\x1b[31mred", "\udc80", "$\\foo$"):
        append_result(path, line("id", name, "ft", 0, 0.5))
    assert run(["report", "--results-db", str(path), "--out", str(tmp_path / "öut $x|")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\\\x1b\\[31mred" in out
    assert (tmp_path / "öut $x|" / "report.html").is_file()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"n": 1' + "0" * 9999 + "}", "x" * 2_000_000])
def test_what_cannot_be_read_is_one_line_and_code_2(tmp_path, capsys, text):
    path = tmp_path / "results.jsonl"
    path.write_text(text + "\n")
    assert run(["report", "--results-db", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "results.jsonl, line 1" in said.err
    assert not (tmp_path / "out").exists()


def test_text_of_a_name():
    assert readable("\x1b[0m\udc80ä\n\u202e") == "\\x1b[0m\\udc80ä\\n\\u202e"
    assert markdown("snake_case_name") == "snake_case_name"
    assert markdown("_a_ <b> $c$ |") == "\\_a\\_ \\<b\\> \\$c\\$ \\|"
    assert short("a" * 40 + "b" * 40, 20) == "a" * 12 + "…" + "b" * 7
    assert columns("数a\u0301") == 3


def test_the_zero_shot_model_has_the_columns_of_the_fine_tuned_ones():
    rs = [line("id", name, "zero-shot", 0, 0.5) for name in ("D", "D-noise")]
    rs += [line("id", "D", "ft", 0, 0.9), line("ood", "D-noise", "ft", 0, 0.7)]
    head, body = parse(table(rs))
    assert head == ["Method", "D (ID)", "noise"]
    assert (body["Zero-shot"]["noise"], body["FT"]["noise"]) == ("50.0", "**70.0**")
    assert table([*reversed(rs)]).count("–") == 0
    both = [*rs, line("ood", "D", "flyp", 0, 0.6), line("id", "D-noise", "flyp", 0, 0.6)]
    head, body = parse(table(both))
    assert head[1:] == ["D (ID)", "D-noise (ID)", "D", "noise", "OOD mean"]
    assert "–" not in body["Zero-shot"].values()


def test_sets_of_one_name_at_different_places_are_different_sets():
    rs = [line("ood", "images", m, 0, v, path=p) for m, v, p in (
        ("ft", 0.1, "/data/dslr/images"), ("ft", 0.2, "/data/webcam/images"),
        ("flyp", 0.3, "/data/dslr/images"), ("flyp", 0.4, "/data/webcam/images"),
    )]  # fmt: skip
    head, body = parse(table(rs))
    assert head[1:3] == ["images (dslr/images)", "images (webcam/images)"]
    assert [body["FT"][c] for c in head[1:3]] == ["10.0", "20.0"]
    splits = [line("id", "D", "ft", 0, 0.1), line("id", "D", "ft", 0, 0.2) | {"split": "val"}]
    head, body = parse(table(splits))
    assert head[1:] == ["D (test) (ID)", "D (val) (ID)"]
    assert make_table(rs).rows == make_table([*rs, *rs]).rows


def test_shortened_names_stay_apart():
    rs = [line("id", n, "ft", 0, 0.5) for n in ("A", "B")]
    rs += [line("ood", n, "ft", 0, 0.5) for n in ("A-noise", "B-noise", "A-ink", "ink", "Letters")]
    rs += [line("forgetting", "Letters", "ft", 0, 0.5)]
    head, _ = parse(table(rs))
    assert len(set(head)) == len(head)
    assert head[3:8] == ["A-noise", "B-noise", "A-ink", "ink", "Letters (OOD)"]

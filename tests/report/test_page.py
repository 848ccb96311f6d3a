"""What the page says: its sentence, its small table, what was chosen where, the Methods paragraph;
and that it is one file that nothing gets into."""

import base64
import hashlib
import re
import statistics
from pathlib import Path

import pytest

from robustft.methods import METHODS
from robustft.report import write_report
from robustft.report.names import ENSEMBLES
from robustft.report.page import SECTIONS, Report, Section, render
from robustft.report.page.chart import Bar, Bars, Chart, Point, Series
from robustft.report.page.details import choices, data_sets
from robustft.report.page.overview import headline, intervals, small_table
from robustft.report.page.overview import section as overview
from robustft.report.page.paragraph import PAPERS, sentences
from robustft.report.sets import settle
from robustft.report.table import make_table

from .test_report import OOD, line, records

ROOT = Path(__file__).parents[2]


def mean(rs, method, role, key="top1", base=None):
    """Over all lines of a role: every set and seed has as many."""
    found = [r[f"{r['dataset']}:{key}"] for r in rs if r["role"] in role and r["method"] == method
             and r["base"] == base and r["selected"]]  # fmt: skip
    return 100 * statistics.fmean(found)


def test_the_sentence_names_the_highest_mean_and_its_differences():
    rs = settle(records())
    said = headline(small_table(rs))
    both = ("id", "ood", "forgetting")
    means = {m: statistics.fmean(mean(rs, m, (role,)) for role in both)
             for m in ("linear-probe", "ft", "lp-ft", "flyp", "r-adapter", "dive")}  # fmt: skip
    assert max(means, key=means.get) == "dive"
    assert (said["best"], said["of"], said["over"]) == ("DiVE", 6, ["ID", "OOD", "other tasks"])
    zero, ft = said["against"]
    assert (zero["name"], ft["name"]) == ("Zero-shot", "FT")
    gain = mean(rs, "dive", ("id",)) - mean(rs, "zero-shot", ("id",))
    assert zero["gains"][0] == f"ID {gain:.1f}"
    lost = mean(rs, "zero-shot", ("forgetting",)) - mean(rs, "dive", ("forgetting",))
    assert zero["loses"][0] == f"other tasks {lost:.1f}"
    assert [text.split()[0] for text in ft["gains"]] == ["ID", "OOD", "other", "RSA", "calibration"]
    only = headline(small_table([line("id", "D", "ft", 0, 0.5)]))
    assert (only["best"], only["of"], only["against"]) == ("FT", 1, [])
    assert headline(small_table([line("id", "D", "zero-shot", 0, 0.5)]))["best"] is None


def test_the_small_table_has_every_measure_and_marks_the_least_error():
    rs = settle(records())
    table = small_table(rs)
    assert [name for name, _ in table.columns] == ["ID", "OOD", "Other tasks", "RSA", "ECE"]
    cells = {row: dict(zip(["id", "ood", "other", "rsa", "ece"], cells, strict=True))
             for row, cells in table.rows}  # fmt: skip
    ft = cells["ft", None]
    assert 100 * ft["ood"].mean == pytest.approx(mean(rs, "ft", ("ood",)))
    assert 100 * ft["ece"].mean == pytest.approx(mean(rs, "ft", ("id", "ood"), "ece"))
    least = min(cells, key=lambda row: round(cells[row]["ece"].mean, 3))
    assert [row for row in cells if cells[row]["ece"].best] == [least]
    assert [row for row, has in cells.items() if has["rsa"] and has["rsa"].best] == [("dive", None)]
    assert cells["ose", None]["other"] is None
    one = small_table([line("id", "D", "ft", 0, 0.5), line("id", "D", "flyp", 0, 0.4)])
    assert [name for name, _ in one.columns] == ["ID", "ECE"]


def test_one_seed_has_wilson_intervals():
    scipy = pytest.importorskip("scipy.stats")
    rs = [line("id", "D", "ft", 0, 0.9), line("ood", "A", "ft", 0, 0.5)]
    rs.append(line("ood", "B", "ft", 0, 0.75) | {"n": 40})
    found = intervals(rs)

    def wilson(hits, n):
        return scipy.binomtest(hits, n).proportion_ci(method="wilson")

    assert found[("ft", None), "id"] == pytest.approx(tuple(wilson(324, 360)))
    ends = [wilson(180, 360), wilson(30, 40)]
    both = (statistics.fmean(e.low for e in ends), statistics.fmean(e.high for e in ends))
    assert found[("ft", None), "ood"] == pytest.approx(both)


def validation(method, seed, lr, value, selected):
    more = {"lr": lr, "selected": selected, "split": "val"}
    return line("validation", "Digits", method, seed, value, **more) | {"n": 359}


def test_what_was_chosen_is_told_with_its_n():
    rs = records(2)
    rs += [validation("ft", seed, lr, 0.9, lr == (1e-3, 3e-3)[seed]) for seed in (0, 1)
           for lr in (1e-3, 3e-3, 1e-2)]  # fmt: skip
    on = {"chosen_on": {"dataset": "Digits", "split": "val", "n": 359}}
    rs += [line("id", "Digits", "vrf", s, 0.97, base="ft", a=1.5, b=0.6, **on) for s in (0, 1)]
    report = Report(rs, settle(rs), make_table(rs))
    rows = {(r["method"], r["what"]): r for r in choices(report).data["rows"]}
    rate = rows["FT", "learning rate"]
    assert rate["chosen"] == "0.001, 0.003 (seeds 0, 1)"
    assert rate["among"] == "0.001, 0.003, 0.01"
    assert rate["on"] == rows["VRF", "a"]["on"] == "Digits (val), n = 359"
    assert rows["VRF", "b"]["chosen"] == "0.6"
    assert rows["WiSE-FT", "α"]["chosen"] == "0.6"
    assert rows["WiSE-FT", "α"]["among"] == "0, 0.1, … 1 (11 values)"
    sizes = {(name, role): n for name, role, _, n, _ in data_sets(report).data["rows"]}
    assert sizes["Digits", "choices alone"] == 359
    swept = [{**r, **on} for r in records(1) if r.get("method") == "wise-ft" and r["selected"]]
    told = data_sets(Report(swept, settle(swept), make_table(swept))).data["rows"]
    assert told[-1] == ("Digits", "choices alone", "val", 359, "359")
    assert {sizes[name, "shifted"] for name in OOD} == {360}


def test_the_paragraph_says_no_more_than_the_records():
    rs = records(3) + [validation("ft", 0, lr, 0.9, lr == 1e-3) for lr in (1e-3, 1e-2)]
    on = {"chosen_on": {"dataset": "Digits", "split": "val", "n": 359}}
    more = {"model": "ViT-B-16", "pretrained": "openai"}
    rs.append(line("id", "Digits", "vrf", 0, 0.97, base="ft", a=1.5, b=0.6, **on, **more))
    text = " ".join(sentences(rs, settle(rs)))
    for part in (
        "FT [arXiv:2109.01903]",
        "DiVE [arXiv:2511.09973]",
        "VRF [arXiv:2411.06966]",
        "Digits (n = 360)",
        "Letters (n = 360)",
        "chosen among 0.001 and 0.01",
        "validation split of Digits (n = 359).",
        "the pre-trained ViT-B-16 (openai) with",
        "α of WiSE-FT and OSE and a and b of VRF were chosen",
        "over 3 seeds (0, 1, 2)",
    ):
        assert part in text
    only = " ".join(sentences(one := [line("id", "D", "ft", 0, 0.5)], one))
    assert "Learning rates" not in only
    assert "α" not in only
    assert "seeds" not in only


def test_every_method_of_the_package_is_cited_as_its_page_does():
    own = [name for name, method in METHODS.items() if method.__module__.startswith("robustft.")]
    for name in {*own, *ENSEMBLES} - {"linear-probe"}:
        pages = (ROOT / "docs" / "methods").glob("*.md")
        assert any(PAPERS[name] in page.read_text(encoding="utf-8") for page in pages), name


def test_the_page_is_one_file_that_runs_its_own_script_alone(tmp_path):
    pytest.importorskip("matplotlib")
    write_report(records(3), tmp_path, title="a\x1bb & <c>")
    path = tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 300_000
    assert "<title>a\\x1bb &amp; &lt;c&gt;</title>" in text
    assert not re.search(r"""(src|href|action)=|url\(|@import|\sstyle=|\son[a-z]+=|https?:""", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-(?:labelledby|describedby)="([^"]*)"', text)
    assert set(named) <= set(ids)


def test_points_ticks_and_bars_stand_at_their_values():
    pytest.importorskip("matplotlib")
    values = [(71.25, 60.5), (80.0, 66.0), (99.5, 48.75)]
    points = [Point(x, y, "", (1.0, 0.0), "small") for x, y in values]
    drawn = Chart("a", "", "", "", [Series("s", "#000000", "o", points, "line")], "").drawn
    (series,) = drawn["series"]
    for axis, ticks in enumerate((drawn["x_ticks"], drawn["y_ticks"])):
        assert len(ticks) >= 4
        told = [float(text) for _, text in ticks] + [point[axis] for point in values]
        at = [place for place, _ in ticks] + [point[axis] for point in series["points"]]
        slope, start = statistics.linear_regression(told, at)
        assert at == pytest.approx([slope * value + start for value in told])
        assert slope > 0 if axis == 0 else slope < 0
    corners = re.findall(r"([\d.]+) ([\d.]+)", series["path"])
    assert [float(x) for x, _ in corners] == pytest.approx(
        [p[0] for p in series["points"]], abs=0.1
    )
    left, right = (float(x) for x in re.findall(r"M([\d.]+) .*H([\d.]+)", series["errors"][0])[0])
    one = (series["points"][1][0] - series["points"][0][0]) / (80.0 - 71.25)
    assert right - left == pytest.approx(2 * one, abs=0.2)
    rows = [(name, "#000000", [Bar(mean, 0.0, "")]) for name, mean in (("a", 20.0), ("b", 50.0))]
    bars = Bars("b", "", "", rows, "").drawn["rows"]
    assert bars[1]["bars"][0]["width"] == pytest.approx(2.5 * bars[0]["bars"][0]["width"])


def test_a_section_is_a_template_and_what_it_shows():
    section = Section("a", "A & B", "paragraph.html", {"sentences": ["<i>", "\u202e"]})
    text = render("t", [section])
    assert '<details class="section" id="a">' in text
    assert "<h2>A &amp; B</h2>" in text
    assert ">&lt;i&gt; \\u202e</blockquote>" in text


def test_what_was_not_measured_has_no_section():
    rs = [line("id", "D", "ft", 0, 0.5)]
    report = Report(rs, rs, make_table(rs))
    found = [section.id for make in SECTIONS if (section := make(report)) is not None]
    assert found == ["results", "kept", "sets", "data", "methods"]


def test_a_long_table_is_grouped_on_the_page():
    rs = [line("id", "D", name, 0, 0.5) for name in [*METHODS, "new"]]
    rs += [line("id", "D", name, 0, 0.5, base="ft") for name in ENSEMBLES]
    text = render("t", [overview(Report(rs, rs, make_table(rs)))])
    heads = re.findall(r'scope="rowgroup">([^<]*)<', text)
    assert heads == ["Fine-tuning", "Regularised", "Adapters", "Other", "Ensembles"]
    assert text.count("<tbody>") == 5
    assert "rowgroup" not in render("t", [overview(Report(one := rs[:3], one, make_table(one)))])

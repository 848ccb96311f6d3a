"""The tables that go into papers and other programs, and papers' own rows recomputed."""

import csv
import io
import json
import math
import re
import statistics

import pytest

from robustft.errors import InputError
from robustft.evaluate import append_result
from robustft.evaluate.foreign import read_any
from robustft.report import make_table, write_report
from robustft.report.further import calibration, robustness
from robustft.report.latex import escape, latex
from robustft.report.tidy import clip_benchmark, clip_benchmark_csv, tidy

from .test_report import line, records

SHIFTS = ("V2", "Sketch", "A", "R", "ObjectNet")
# VRF (arXiv 2411.06966), ViT-B/16: ImageNet, the shifts above, and the printed mean of these.
PUBLISHED = {
    "zero-shot": (68.3, (61.9, 48.3, 50.1, 77.6, 54.2), 58.4),
    "linear-probe": (79.3, (69.1, 44.8, 44.3, 66.7, 51.1), 55.2),
    "ft": (81.3, (70.6, 45.1, 36.6, 65.6, 50.5), 53.7),
    "wise-ft": (82.5, (73.1, 51.6, 47.6, 75.1, 55.7), 60.6),
    "ose": (82.2, (72.0, 50.6, 46.8, 76.7, 54.9), 60.2),
    "vrf": (82.3, (72.1, 52.9, 48.4, 78.7, 56.4), 61.8),
    "lp-ft": (81.5, (70.7, 46.7, 41.4, 66.4, 52.4), 55.5),
}
# The same of its ViT-B/32, and R-Adapter's (arXiv 2408.05749) rows of ViT-B/16.
SMALLER = {
    "zero-shot": (63.3, (55.9, 42.3, 31.5, 69.3, 43.5), 48.5),
    "ft": (76.2, (64.2, 38.7, 21.0, 57.1, 40.1), 44.2),
    "wise-ft": (77.9, (67.2, 45.1, 28.8, 66.4, 45.1), 50.5),
    "ose": (77.3, (66.0, 44.2, 27.1, 68.4, 44.4), 50.0),
    "vrf": (77.6, (66.7, 47.0, 29.2, 70.9, 46.3), 52.0),
    "lp-ft": (76.9, (64.8, 39.9, 25.7, 69.9, 42.6), 48.6),
}
ADAPTED = {
    "zero-shot": (68.3, (61.9, 48.3, 50.1, 77.6, 54.0), 58.4),
    "ft": (80.7, (70.4, 45.1, 35.2, 64.0, 49.1), 52.8),
    "wise-ft": (81.7, (72.8, 53.9, 52.2, 78.7, 57.3), 63.0),
    "r-adapter": (82.0, (73.6, 53.9, 57.5, 79.1, 59.7), 64.8),
}
# DiVE (arXiv 2511.09973), ViT-B/16 after ImageNet: ten other sets and the printed mean of these.
KEPT = {
    "zero-shot": ((89.5, 67.0, 84.5, 63.0, 46.3, 22.6, 59.0, 87.7, 46.3, 65.7), 63.2),
    "flyp": ((87.6, 39.7, 63.3, 52.6, 36.8, 8.0, 32.3, 77.2, 38.2, 59.0), 49.5),
    "snd": ((89.1, 49.5, 69.6, 58.7, 38.7, 11.0, 42.5, 79.6, 42.7, 62.6), 54.4),
    "dive": ((88.4, 66.0, 84.3, 64.7, 47.0, 22.1, 55.5, 88.4, 51.4, 68.9), 63.7),
}


def column(found, name):
    (place,) = (i for i, (head, _) in enumerate(found.columns) if head == name)
    return {row: cells[place] for row, cells in found.rows}


@pytest.mark.parametrize("published", [PUBLISHED, SMALLER, ADAPTED], ids=["B/16", "B/32", "RA"])
def test_published_means_over_the_shifts(published):
    rs = []
    for method, (inside, shifts, _) in published.items():
        rs.append(line("id", "IN", method, 0, inside / 100))
        rs += [
            line("ood", f"IN-{name}", method, 0, value / 100)
            for name, value in zip(SHIFTS, shifts, strict=True)
        ]
    for (method, _), cell in column(make_table(rs), "OOD mean").items():
        # Each set is rounded to 0.1, and so is the mean.
        assert 100 * cell.mean == pytest.approx(published[method][2], abs=0.101)


def test_published_forgetting():
    rs = [
        line("forgetting", f"set {i}", method, 0, value / 100)
        for method, (values, _) in KEPT.items()
        for i, value in enumerate(values)
    ]
    for (method, _), cell in column(robustness(rs), "Forgetting").items():
        assert 100 * cell.mean == pytest.approx(KEPT["zero-shot"][1] - KEPT[method][1], abs=0.101)


def measured(method, seed, value, role="id", name="D", **more):
    return line(role, name, method, seed, 0.5, **{f"{name}:nll": value}, **more)


def test_the_calibration_table_means_over_sets_then_seeds_and_the_least_is_best():
    rs = [measured("ft", seed, 1.0 + seed) for seed in range(3)]
    rs += [measured("flyp", 0, 1.5), measured("dive", 0, None)]
    rs += [measured("ft", 0, 3.0, "ood", "A"), measured("ft", 0, 4.0, "ood", "B")]
    rs += [measured("flyp", 0, 3.1, "ood", "A")]  # no mean without B
    for r in rs:
        r.pop(f"{r['dataset']}:ece", None)
    found = calibration(rs)
    assert [head for head, _ in found.columns] == ["ID NLL", "OOD NLL"]
    inside, outside = (column(found, name) for name in ("ID NLL", "OOD NLL"))
    assert (inside["ft", None].mean, inside["ft", None].std) == (2.0, 1.0)
    assert inside["flyp", None].best
    assert not inside["ft", None].best
    assert outside == {("ft", None): outside["ft", None], ("flyp", None): None}
    assert outside["ft", None].mean == 3.5
    assert ("dive", None) not in inside, "nothing was measured"
    assert calibration([line("forgetting", "F", "ft", 0, 0.5)]) is None


def test_the_robustness_table_by_hand():
    rs = []
    for seed, shift in enumerate((0.0, 0.1)):
        for alpha, inside, outside in ((0.0, 0.5, 0.6), (0.5, 0.7, 0.5 + shift), (1.0, 0.8, 0.3)):
            who = {"alpha": alpha, "selected": alpha == 0.5}
            rs += [line("id", "D", "wise-ft", seed, inside, **who)]
            rs += [line("ood", "A", "wise-ft", seed, outside, **who)]
    rs += [line("id", "D", "ft", 0, 0.8), line("ood", "A", "ft", 0, 0.3)]
    base = [line(*x) for x in (("id", "D", "a", 0, 0.6), ("ood", "A", "a", 0, 0.4))]
    base += [line(*x) for x in (("id", "D", "b", 0, 0.9), ("ood", "A", "b", 0, 0.8))]
    found = robustness(rs, base)
    heads = [head for head, _ in found.columns]
    assert heads == ["Effective robustness", "ID–OOD area", "Hypervolume"]
    volume = column(found, "Hypervolume")
    # 0.5·0.6 + 0.2·0.5 + 0.1·0.3, and with 0.6 in the middle 0.7·0.6 + 0.1·0.3.
    assert volume["wise-ft", None].mean == pytest.approx((0.43 + 0.45) / 2)
    assert volume["ft", None].mean == pytest.approx(0.24)
    area = column(found, "ID–OOD area")
    assert area["wise-ft", None].mean == pytest.approx((0.3 + 0.11 + 0.04 + 0.42 + 0.045) / 2)
    assert area["ft", None] is None
    gains = column(found, "Effective robustness")
    odds = [(0.6 / 0.4, 0.4 / 0.6), (0.9 / 0.1, 0.8 / 0.2)]  # the line through two points
    (x0, y0), (x1, y1) = (tuple(map(math.log, pair)) for pair in odds)
    at = y0 + (math.log(0.8 / 0.2) - x0) * (y1 - y0) / (x1 - x0)
    assert gains["ft", None].mean == pytest.approx(0.3 - 1 / (1 + math.exp(-at)))
    with pytest.raises(InputError, match="points: got 1 models"):
        robustness(rs, base[:2])


TRAPS = [
    "=HYPERLINK(\"http://x\")", "+1+1", "-2", "@SUM(A1)", " =1", "＝1", "\t=1", "a,b\"c", "a\nb",
    "\\input{/etc/passwd}", "$x^2$ 50% #1 {a}_b & ~", "[2ex]", "*", "a--b", "<script>", "^^41",
]  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_a_name_is_text_in_spreadsheets_and_latex(name):
    rs = [line("id", name, name, 0, 0.5), line("id", name, "ft", 0, -0.0)]
    rows = list(csv.DictReader(io.StringIO(tidy(rs))))
    cells = [row[key] for row in rows for key in ("method", "name", "dataset")]
    cells += next(csv.reader(io.StringIO(clip_benchmark_csv(clip_benchmark(rs)))))
    for cell in cells:
        assert cell.strip()[:1] not in ("=", "+", "-", "@", "＝")
        assert "\n" not in cell
    text = escape(name)
    bare = re.sub(r"\\(textbackslash|text[a-z]+)\{\}|\\[#$%&_{}]", "", text)
    assert not re.search(r"[\\#$%&_~^<>|\"\n]", bare)
    assert bare.count("{") == bare.count("}")
    assert "--" not in text
    body = latex(make_table(rs)).splitlines()
    assert all(row.count("&") - row.count("\\&") == 1 for row in body if row.endswith(r" \\"))
    assert not [row for row in body if row.startswith(("[", "*"))]


def test_latex_has_booktabs_rules_the_best_bold_and_the_groups_of_a_long_table():
    text = latex(make_table(records()))
    assert text.startswith(r"\begin{tabular}{l" + "r" * 12 + "}\n\\toprule\nMethod & ")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    dive = next(row for row in text.splitlines() if row.startswith("DiVE &"))
    assert r"\textbf{0.9" in dive
    assert r" $\pm$ " in dive
    assert dive.endswith(r" \\")
    assert "--" in next(row for row in text.splitlines() if row.startswith("OSE &"))
    assert text.count("\\midrule") == 1


def test_the_tidy_rows_are_the_means_in_full_precision():
    rs = records()
    rows = list(csv.DictReader(io.StringIO(tidy(rs))))
    mine = [r for r in rs if r.get("method") == "wise-ft" and r["dataset"] == "Noise"]
    values = [r["Noise:ece"] for r in mine if r["selected"]]
    (one,) = [
        row
        for row in rows
        if (row["method"], row["dataset"], row["measure"]) == ("wise-ft", "Noise", "ece")
    ]
    assert float(one["mean"]) == statistics.fmean(values)
    assert float(one["std"]) == statistics.stdev(values)
    assert (one["seeds"], one["n"], one["role"]) == ("3", "360", "ood")
    assert {row["measure"] for row in rows if row["role"] == "geometry"} == {
        "RSA:euclidean",
        "RSA:cosine",
    }


def test_clip_benchmark_s_form_and_back(tmp_path):
    rs = [line("id", "D", "ft", 0, 0.5, **{"D:top5": 0.9, "D:mean-per-class": 0.4})]
    rs += [line("forgetting", "F", "zero-shot", 1, 0.7)]
    rs[0] |= {"model": "ViT-B-32", "pretrained": "openai"}
    rs[1] |= {"model": "ViT-B-32", "pretrained": "openai"}
    rs += [line("ood", "A", "wise-ft", 0, 0.6, base="flyp", alpha=0.3)]
    found = clip_benchmark(rs)
    first = dict(list(found[0].items())[:6])
    assert first == {
        "dataset": "D",
        "model": "ViT-B-32",
        "pretrained": "openai, FT, seed 0",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "acc5": 0.9, "mean_per_class_recall": 0.4},
        "language": "en",
    }
    table = list(csv.DictReader(io.StringIO(clip_benchmark_csv(found))))
    assert (table[0]["acc1"], table[0]["acc5"], table[1]["acc5"]) == ("0.5", "0.9", "")
    assert table[1]["model_fullname"] == "ViT-B-32 openai", "as CLIP_benchmark's own"
    assert table[2]["model_fullname"] == "CLIP FLYP+WiSE-FT, seed 0"
    path = tmp_path / "back.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    kept = ("dataset", "role", "split", "method", "base", "alpha", "seed", "n")
    back = read_any(path)
    assert [[r[k] for k in kept] for r in back] == [[r[k] for k in kept] for r in rs]
    assert back[0]["D:top5"] == 0.9


def test_the_report_writes_all_tables(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "results.jsonl"
    for record in records(1):
        append_result(path, record)
    write_report(path, tmp_path / "out")
    markdown = (tmp_path / "out" / "measures.md").read_text()
    assert re.findall(r"^## (.+)$", markdown, re.MULTILINE) == ["Calibration", "Robustness"]
    assert "ID ECE | OOD ECE |" in markdown
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in ("Calibration and robustness", "OOD ECE", "Hypervolume"))
    tex = (tmp_path / "out" / "table.tex").read_text()
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 3
    assert (tmp_path / "out" / "table.csv").read_text() == tidy(records(1))
    lines = (tmp_path / "out" / "clip_benchmark.jsonl").read_text().splitlines()
    assert [json.loads(x) for x in lines] == clip_benchmark(records(1))

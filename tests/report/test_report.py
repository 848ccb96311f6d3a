"""The table's numbers, and a whole report from realistic records."""

import itertools
import math
import random
import re
import statistics
import xml.etree.ElementTree as ElementTree

import pytest

from robustft.errors import InputError
from robustft.evaluate import append_result
from robustft.report import make_table, table, write_report
from robustft.report.labels import spread_out

OOD = ["Fonts", "Coloured ink", "Texture", "Inverted", "Noise", "Low resolution", "Tilt", "Blur"]
FIGURES = ("id-ood", "alpha", "ratio", "geometry", "forgetting", "calibration")
TABLES = {"table.md", "table.tex", "table.csv", "clip_benchmark.jsonl", "clip_benchmark.csv"}
SINGLE = {  # ID, OOD, forgetting, RSA
    "zero-shot": (0.72, 0.66, 0.91, 1.0),
    "linear-probe": (0.955, 0.62, 0.91, 1.0),
    "ft": (0.978, 0.60, 0.55, 0.61),
    "lp-ft": (0.981, 0.63, 0.60, 0.70),
    "flyp": (0.983, 0.64, 0.48, 0.66),
    "r-adapter": (0.975, 0.70, 0.78, 0.88),
    "dive": (0.982, 0.72, 0.88, 0.965),
}


def line(role, dataset, method, seed, value, **more):
    record = {"dataset": dataset, "role": role, "split": "test", "method": method}
    record |= {"base": None, "alpha": None, "selected": True, "seed": seed, "n": 360}
    if value is not None and role in ("id", "ood"):
        record[f"{dataset}:ece"] = (1 - value) / 3
    return {**record, f"{dataset}:top1": value, **more}


def records(seeds=3, ood=OOD):
    rng = random.Random(0)
    out = []

    def accuracies(method, seed, inside, outside, **more):
        out.append(line("id", "Digits", method, seed, inside + rng.gauss(0, 0.002), **more))
        for i, name in enumerate(ood):
            value = outside + 0.05 * math.sin(i) + rng.gauss(0, 0.01)
            out.append(line("ood", name, method, seed, value, **more))

    for seed in range(seeds):
        for method, (inside, outside, kept, rsa) in SINGLE.items():
            accuracies(method, seed, inside, outside)
            out.append(line("forgetting", "Letters", method, seed, kept + rng.gauss(0, 0.005)))
            geometry = line("geometry", "Digits", method, seed, None)
            del geometry["Digits:top1"]
            noise = rng.gauss(0, 0.01) if rsa < 1 else 0.0
            out.append({**geometry, "RSA:euclidean": rsa + noise, "RSA:cosine": rsa + noise - 0.01})
        for method, gain in (("wise-ft", 0.05), ("ose", 0.03)):
            for i in range(11):
                a = i / 10
                inside = 0.72 + 0.258 * a**0.5
                outside = 0.66 - 0.06 * a + 4 * gain * a * (1 - a)
                accuracies(method, seed, inside, outside, base="ft", alpha=a, selected=i == 6)
        accuracies("vrf", seed, 0.978, 0.695, base="ft")
        accuracies("vrf", seed, 0.983, 0.735, base="dive")
        for i in range(8):
            ratio = {"role": "ratio", "distance": 0.1 + 0.1 * i, "n": 30 + 9 * i, "base": "ft"}
            ft, zs = 0.97 - 0.05 * i, 0.7
            ratio |= {"accuracy_finetuned": ft, "accuracy_zeroshot": zs, "ratio": ft / zs}
            out.append({**ratio, "seed": seed})
    return out


def parse(markdown):
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in markdown.splitlines()]
    assert len({len(r) for r in rows}) == 1
    return rows[0], {r[0]: dict(zip(rows[0], r, strict=True)) for r in rows[2:]}


def test_rows_and_columns_are_in_order():
    head, body = parse(table(records()))
    assert head == ["Method", "Digits (ID)", *OOD, "OOD mean", "Letters", "RSA"]
    assert " ".join(body) == "Zero-shot LP FT LP-FT FLYP DiVE R-Adapter WiSE-FT OSE VRF DiVE+VRF"
    assert body["OSE"]["Letters"] == "–"


def test_a_long_table_has_headings_for_its_groups_and_a_short_one_has_none():
    from robustft.methods import METHODS

    rs = [line("id", "D", name, 0, 0.5) for name in [*METHODS, "new"]]
    rs += [line("id", "D", name, 0, 0.5, base="ft") for name in ("greedy-soup", "post-tpgm", "lse")]
    text = table(rs)
    assert len({len(row) for row in text.splitlines()}) == 1
    names = [row.split("|")[1].strip() for row in text.splitlines()[2:]]
    headings = [name for name in names if name.startswith("*")]
    assert headings == ["*Fine-tuning*", "*Regularised*", "*Adapters*", "*Other*", "*Ensembles*"]
    after = names[names.index("*Regularised*") : names.index("*Adapters*")]
    assert after[1:] == [m.display for m in METHODS.values() if m.group == "regularised"]
    assert names[names.index("*Ensembles*") + 1 :] == ["LSE", "Greedy soup", "TPGM (after)"]
    assert "*" not in table(records(seeds=1)).replace("**", "")


def test_a_cell_is_the_mean_and_sample_deviation_over_seeds():
    rs = records()
    _, body = parse(table(rs))
    means = []
    for seed in range(3):
        means.append(
            statistics.fmean(
                r[f"{r['dataset']}:top1"]
                for r in rs
                if (r["role"], r.get("method"), r["seed"]) == ("ood", "wise-ft", seed)
                and r["selected"]
            )
        )
    want = f"{100 * statistics.fmean(means):.1f} ± {100 * statistics.stdev(means):.1f}"
    assert body["WiSE-FT"]["OOD mean"] == want
    _, one = parse(table(records(seeds=1)))
    assert "±" not in one["FT"]["Digits (ID)"]
    three = [line("id", "Digits", "ft", seed, 0.5 + 0.1 * seed) for seed in range(3)]
    assert parse(table(three))[1]["FT"]["Digits (ID)"] == "60.0 ± 10.0"  # of a sample: over n - 1


def test_only_the_best_is_bold_and_frozen_encoders_do_not_compete_for_rsa():
    _, body = parse(table(records()))
    for column in ("Digits (ID)", "OOD mean", "Fonts", "Letters"):
        values = {
            m: float(re.sub(r"[*]|±.*", "", row[column]))
            for m, row in body.items()
            if row[column] != "–"
        }
        bold = {m for m, row in body.items() if row[column].startswith("**")}
        assert bold == {m for m, v in values.items() if v == max(values.values())}
    assert {m for m, row in body.items() if row["RSA"].startswith("**")} == {"DiVE"}
    assert body["Zero-shot"]["RSA"] == "1.000 ± 0.000"


def test_the_last_of_repeated_lines_counts_and_a_missing_set_leaves_no_mean():
    rs = [line("id", "D", "ft", 0, 0.5), line("id", "D", "ft", 0, 0.7)]
    rs += [line("ood", "A", "ft", 0, 0.4), line("ood", "B", "ft", 0, None)]
    rs += [line("ood", "A", "flyp", 0, 0.4), line("ood", "B", "flyp", 0, 0.2)]
    _, body = parse(table(rs))
    assert body["FT"]["D (ID)"] == "70.0"
    assert body["FT"]["B"] == body["FT"]["OOD mean"] == "–"
    assert body["FLYP"]["OOD mean"] == "30.0"


def test_an_ensemble_on_another_base_and_an_unknown_method_have_rows():
    rs = [line("id", "D", m, 0, 0.5, base=b) for m, b in [("new", None), ("wise-ft", "flyp")]]
    assert [row for row, _ in make_table(rs).rows] == [("new", None), ("wise-ft", "flyp")]
    assert "FLYP+WiSE-FT" in table(rs)
    assert "a\\|b" in table([line("id", "a|b", "ft", 0, 0.5)])
    assert "VRF (binary, all data)" in table([line("id", "D", "vrf-binary-all", 0, 0.5, base="ft")])
    assert "DiVE+OSE (calibrated)" in table(
        [line("id", "D", "calibrated-ose", 0, 0.5, base="dive")]
    )


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_whole_report(tmp_path, seeds):
    pytest.importorskip("matplotlib")
    path = tmp_path / "results.jsonl"
    for record in records(seeds):
        append_result(path, record)
    out = tmp_path / "report"
    written = write_report(path, out, title="Digits <&> shifts")
    names = {p.name for p in written}
    assert names == TABLES | {"measures.md", "report.html"} | {
        f"{n}.{s}" for n in FIGURES for s in ("png", "svg", "pdf")
    }
    assert {p.name for p in out.iterdir()} == names
    assert (out / "table.md").read_text() == table(records(seeds))
    svg = ElementTree.parse(out / "id-ood.svg").getroot()
    assert svg.tag.endswith("svg")
    assert (out / "alpha.png").read_bytes().startswith(b"\x89PNG")

    page = (out / "report.html").read_text()
    assert "<title>Digits &lt;&amp;&gt; shifts</title>" in page
    assert page.count('<figure class="chart"') == 4
    assert page.count("<figure") == 7
    assert "DiVE+VRF" in page

    first = {p.name: p.read_bytes() for p in written}
    write_report(records(seeds), out, title="Digits <&> shifts")
    assert {p.name: p.read_bytes() for p in written} == first


def test_labels_of_the_scatter_plot_do_not_overlap():
    pytest.importorskip("matplotlib")
    from robustft.report import plots
    from robustft.report.style import style

    with style():
        figure = plots.id_against_ood(records())
        axes = figure.axes[0]
        renderer = figure.canvas.get_renderer()
        boxes = {t.get_text(): t.get_window_extent(renderer) for t in axes.texts}
    assert len(boxes) == 11
    frame = axes.get_window_extent(renderer)
    for name, box in boxes.items():
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        for other, there in boxes.items():
            assert other == name or not box.overlaps(there), (name, other)


def test_plots_without_data_are_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    without = [{k: v for k, v in r.items() if not k.endswith(":ece")} for r in records(1)]
    only = [r for r in without if r["role"] == "id"]
    assert {p.name for p in write_report(only, tmp_path)} == {*TABLES, "report.html"}
    geometry = [r for r in without if r["role"] in ("id", "geometry")]
    names = {p.name for p in write_report(geometry, tmp_path / "g")}
    assert names == {*TABLES, "report.html", *(f"geometry.{s}" for s in ("png", "svg", "pdf"))}
    with pytest.raises(InputError, match="no evaluation"):
        write_report([r for r in records(1) if r["role"] == "ratio"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_spread_out_keeps_the_gap_and_the_order():
    got = spread_out([5.0, 5.0, 5.1, 9.0], 1.0, 0.0, 9.5)
    assert got == sorted(got)
    assert min(b - a for a, b in itertools.pairwise(got)) > 0.999
    assert spread_out([1.0, 5.0], 1.0) == [1.0, 5.0]
    top = spread_out([9.4, 9.5], 1.0, 0.0, 9.5)
    assert top[1] == pytest.approx(9.5)
    assert top[0] == pytest.approx(8.5, abs=1e-3)


def test_what_is_forgotten_and_miscalibrated_is_drawn_at_its_numbers():
    pytest.importorskip("matplotlib")
    from robustft.report import bars
    from robustft.report.style import style

    rs = records()
    with style():
        kept, calibrated = bars.forgotten(rs).axes[0], bars.calibration(rs).axes[0]
    names = [t.get_text() for t in kept.get_yticklabels()]
    assert names == ["Zero-shot", "LP", "FT", "LP-FT", "FLYP", "DiVE", "R-Adapter"]
    for name, bar in zip(names, kept.patches, strict=True):
        method = {"LP": "linear-probe", "R-Adapter": "r-adapter"}.get(name, name.lower())
        found = [r["Letters:top1"] for r in rs if r.get("dataset") == "Letters"
                 and r["role"] == "forgetting" and r["method"] == method]  # fmt: skip
        assert bar.get_width() == pytest.approx(100 * statistics.fmean(found))
    first = [r["Digits:ece"] for r in rs if r["role"] == "id" and r["method"] == "zero-shot"]
    dots = [x for x in calibrated.lines if x.get_marker() == "o"]
    assert dots[0].get_xdata()[0] == pytest.approx(100 * statistics.fmean(first))
    assert bars.forgotten([r for r in rs if r["role"] == "id"]) is None


def test_the_strengths_of_r_adapter_are_a_curve_of_their_own():
    """The lines of `eval --alpha`, with the run's own line before them."""
    pytest.importorskip("matplotlib")
    from robustft.report import plots
    from robustft.report.style import style

    rs = [r for r in records(2) if r.get("method") in ("zero-shot", "r-adapter")]
    with style():
        assert plots.alpha_sweep(rs) is None
    for seed in range(2):
        for a in (0.0, 0.5, 1.0):
            value, more = 0.7 + 0.2 * a + 0.02 * seed, {"alpha": a, "selected": a == 0.5}
            rs.append(line("id", "Digits", "r-adapter", seed, value, **more))
            rs += [line("ood", name, "r-adapter", seed, value - 0.1, **more) for name in OOD]
    with style():
        swept, plane = plots.alpha_sweep(rs), plots.id_against_ood(rs)
    inside, outside = swept.axes
    for axes, height in ((inside, [71, 81, 91]), (outside, [61, 71, 81])):
        curve, chosen = axes.lines
        assert list(curve.get_xdata()) == [0, 0.5, 1]
        assert curve.get_ydata() == pytest.approx(height)
        assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (0.5, pytest.approx(height[1]))
        assert [t.get_text() for t in axes.texts] == ["R-Adapter"]
        assert axes.get_xlabel() == "α (0 zero-shot, 1 R-Adapter)"
    (curve,) = (
        x for x in plane.axes[0].lines if x.get_linestyle() == "-" and len(x.get_xdata()) == 3
    )
    assert curve.get_xdata() == pytest.approx([71, 81, 91])

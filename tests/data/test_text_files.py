"""Text files and tables: what is wrong is named by file and line, and no row is swallowed."""

from __future__ import annotations

from functools import partial

import pytest

from robustft.data import load_dataset, load_reference
from robustft.errors import InputError, InputWarning
from robustft.models import resolve_templates

ROWS = [f"img/{i}.png{{}}a photo number {i}" for i in range(40)]


def table(tmp_path, changes, suffix="csv", *, encoding="utf-8"):
    separator = "," if suffix == "csv" else "\t"
    lines = [row.format(separator) for row in ROWS]
    for row, text in changes.items():
        lines[row] = f"img/{row}.png{separator}{text}"
    path = tmp_path / f"pairs.{suffix}"
    content = f"path{separator}caption\n" + "\n".join(lines) + "\n"
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    "changes",
    [
        {24: '"open" sign on a door'},
        {24: '"big" 5" screen'},
        {24: '"and then she said'},
        {24: '"and then she said', 30: 'he answered"'},  # closed some rows further down
        {24: '"and then she said', 30: '"he answered"'},
    ],
)
def test_a_stray_quotation_mark_names_its_line(tmp_path, suffix, changes):
    path = table(tmp_path, changes, suffix)
    with pytest.raises(InputError) as refused:
        load_reference(path)
    assert f"{path}, line 26: " in str(refused.value)
    assert "\n" not in str(refused.value).replace("\\n", "")


def test_a_stray_quotation_mark_in_a_large_table_names_its_line(tmp_path):
    path = tmp_path / "large.csv"
    rows = [f"img/{i}.png,a photo number {i}" for i in range(20_000)]
    rows[12] = 'img/12.png,"and then'
    path.write_text("path,caption\n" + "\n".join(rows))
    with pytest.raises(InputError, match=r"large\.csv, line 14: "):
        load_reference(path)


def test_marks_inside_and_lines_inside_a_caption_are_read(tmp_path):
    text = '"a ""big"" cat,\nasleep, on a mat"'
    pairs = load_reference(table(tmp_path, {3: text, 4: 'a 5" screen'}))
    assert pairs.captions[3:5] == ['a "big" cat,\nasleep, on a mat', 'a 5" screen']
    assert len(pairs) == 40


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    assert len(load_reference(table(tmp_path, {}, encoding="utf-8-sig"))) == 40
    with pytest.raises(InputError, match=r"pairs\.csv, line 1: the file is UTF-16; save it as"):
        load_reference(table(tmp_path, {}, encoding="utf-16"))


@pytest.mark.parametrize("kind", ["table", "classnames", "templates", "prompts"])
def test_another_code_page_is_named_by_line_and_byte(tmp_path, kind):
    (tmp_path / "d" / "test" / "a").mkdir(parents=True)
    (tmp_path / "d" / "test" / "a" / "0.png").write_bytes(b"")
    if kind == "table":
        path = table(tmp_path, {6: "a café"}, encoding="cp1252")
        with pytest.raises(InputError) as refused:
            load_reference(path)
        line = 8
    else:
        path = tmp_path / "d" / f"{kind}.txt"
        path.write_bytes("a {}\na {} in a café\n".encode("cp1252"))
        read = partial(resolve_templates, path)
        if kind != "prompts":
            read = partial(load_dataset, tmp_path / "d", "test")
        with pytest.raises(InputError) as refused:
            read()
        line = 2
    assert f"{path}, line {line}: byte 0xe9 is not UTF-8" in str(refused.value)


def test_only_line_ends_end_lines(tmp_path):
    names = ["next\x85line", "paragraph\u2029sign", "form\x0cfeed"]
    (tmp_path / "classnames.txt").write_bytes("\r\n".join(names).encode())
    (tmp_path / "t-test.csv").write_text("path,label\r\nx.png,2\r\n")
    assert load_dataset(tmp_path / "t-test.csv", "test").classnames == names


def test_pairs_without_a_caption_are_left_out_and_counted(tmp_path):
    path = table(tmp_path, {3: "", 9: "   "})
    with pytest.warns(InputWarning, match=r"2 of 40 rows have no caption \(the first in line 5\)"):
        pairs = load_reference(path)
    assert (len(pairs), pairs.available) == (38, 38)
    assert all(caption.strip() for caption in pairs.captions)
    path.write_text("path,caption\na.png,\nb.png, \n")
    with pytest.raises(InputError, match=r"line 2: the caption is empty, and all others are"):
        load_reference(path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_labelled_rows_without_a_caption_are_refused(tmp_path, split):
    path = tmp_path / f"t-{split}.csv"
    path.write_text("path,caption,label\n0.png,a cat,0\n1.png,a cat,0\n2.png, ,0\n")
    with pytest.raises(InputError, match=r"t-\w+\.csv, line 4: the caption is empty"):
        load_dataset(path, split, classnames=["cat"])


def test_all_pairs_are_taken_unless_a_number_is_given(tmp_path):
    path = table(tmp_path, {})
    assert len(load_reference(path)) == len(load_reference(path, n=99)) == 40
    four = load_reference(path, n=4, seed=1)
    assert (len(four), four.available) == (4, 40)
    assert len(load_reference("glyphs", n=3)) == 3

"""Files of JSON lines under full disks, killed writers, several processes and odd bytes."""

import json
import resource
import subprocess
import sys

import pytest

from robustft import jsonlines
from robustft.errors import InputError
from robustft.evaluate import append_result, read_results
from robustft.train.log import Log

LINE = {
    "dataset": "Digits",
    "role": "id",
    "split": "test",
    "method": "flyp",
    "seed": 0,
    "n": 360,
    "Digits:top1": 0.95,
}

FILL = """
import resource, sys
from robustft.evaluate import append_result
path, limit, line = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write beyond it is cut short
try:
    for i in range(100):
        append_result(path, {**line, "seed": i})
except OSError as error:
    print("refused", i)
"""


def values(path):
    return [value for _, value in jsonlines.read(path)]


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path):
    path = tmp_path / "results.jsonl"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path), "1000", repr(LINE)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert limit == resource.getrlimit(resource.RLIMIT_FSIZE)
    written = int(done.stdout.split()[1])
    assert written > 3
    assert path.read_bytes().endswith(b"}\n")
    assert [r["seed"] for r in read_results(path)] == list(range(written))
    append_result(path, {**LINE, "seed": 999})  # there is room again
    assert [r["seed"] for r in read_results(path)] == [*range(written), 999]
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_what_a_killed_writer_left_is_left_out_and_set_aside(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    for seed in range(3):
        append_result(path, {**LINE, "seed": seed})
    whole = path.read_bytes()
    half = whole.splitlines()[0][:cut]
    path.write_bytes(whole + half)
    with pytest.warns(UserWarning, match=r"line 4: its end is missing"):
        assert [r["seed"] for r in read_results(path)] == [0, 1, 2]
    assert path.read_bytes() == whole + half  # a reader changes nothing
    with pytest.warns(UserWarning, match=r"results\.jsonl\.broken"):
        append_result(path, {**LINE, "seed": 3})
    assert [r["seed"] for r in read_results(path)] == [0, 1, 2, 3]
    assert (tmp_path / "results.jsonl.broken").read_bytes() == half + b"\n"


def test_half_of_the_only_line_and_of_a_letter(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes('{"step": 1, "name": "ü'.encode()[:-1])
    with pytest.warns(UserWarning, match="left out"):
        assert values(path) == []
    with pytest.warns(UserWarning, match="broken"):
        jsonlines.append(path, {"step": 2})
    assert values(path) == [{"step": 2}]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"step": 1}\r\n\n{"step": 2}')  # as an editor may leave it
    jsonlines.append(path, {"step": 3})
    assert values(path) == [{"step": i} for i in (1, 2, 3)]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_last_line_longer_than_what_is_read_at_a_time(tmp_path):
    path, long = tmp_path / "a.jsonl", {"name": "".join(map(str, range(50_000)))}
    jsonlines.append(path, {"step": 1})
    with open(path, "a") as file:
        file.write(json.dumps(long))  # whole, without its end
    jsonlines.append(path, {"step": 2})
    assert values(path) == [{"step": 1}, long, {"step": 2}]
    half = json.dumps(long)[:-1].encode()
    with open(path, "ab") as file:
        file.write(half)
    with pytest.warns(UserWarning, match="broken"):
        jsonlines.append(path, {"step": 3})
    assert values(path) == [{"step": 1}, long, {"step": 2}, {"step": 3}]
    assert (tmp_path / "a.jsonl.broken").read_bytes() == half + b"\n"


def test_a_resumed_log_survives_half_a_line(tmp_path):
    log = Log(tmp_path, resumed_at=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float("nan"), "name": "a\u2028b"})
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'{"step": 4, "na\xc3')
    with pytest.warns(UserWarning, match="left out"):
        again = Log(tmp_path, resumed_at=2)
    assert [r["step"] for r in again.records] == [1, 2]
    assert again.records[0] == {"step": 1, "loss": None, "name": "a\u2028b"}
    again.write(3, {})
    assert [r["step"] for r in values(tmp_path / "log.jsonl")] == [1, 2, 3]


def test_two_processes_append_at_once(tmp_path):
    path = tmp_path / "results.jsonl"
    program = (
        "import sys; from robustft import jsonlines\n"
        "for i in range(300): jsonlines.append(sys.argv[1], [sys.argv[2], i, 'x' * 50 * (i % 90)])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in ("a", "b")
    ]
    assert [p.wait() for p in both] == [0, 0]
    found = values(path)
    for name in ("a", "b"):
        assert [v[1] for v in found if v[0] == name] == list(range(300))
    assert len(list(tmp_path.iterdir())) == 1


def test_any_text_comes_back_and_numbers_that_are_none_are_null(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = ["$\\foo$", "\x1b[31mred", "\udc80.png", "a|b", "é\u2028\x85\n", "𝔘", "\ud83d"]
    for text in texts:
        jsonlines.append(path, {"name": text, "loss": [float("inf"), {"x": float("nan")}]})
    assert values(path) == [{"name": text, "loss": [None, {"x": None}]} for text in texts]
    for line in path.read_bytes().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b'{"n": 1' + b"0" * 5000 + b"}", "line 2"),
        (b"x" * (1 << 20) + b"y", "more than 1048576 bytes"),
        (b"\xff\xfe{", "not JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line_of_error(tmp_path, text, said):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"\n" + text + b"\n")
    with pytest.raises(InputError, match=r"results\.jsonl, line 2: ") as caught:
        read_results(path)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_record_nested_too_deeply_or_too_large_is_refused(tmp_path):
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InputError, match="nested too deeply"):
        append_result(tmp_path / "a.jsonl", {**LINE, "extra": deep})
    for key in ("n", "seed"):
        with pytest.raises(InputError, match=key):
            append_result(tmp_path / "a.jsonl", {**LINE, key: 10**400})
    assert not (tmp_path / "a.jsonl").exists()
    path = tmp_path / "b.jsonl"
    text = json.dumps({**LINE, "extra": 0}).replace("0}", "[" * 3000 + "]" * 3000 + "}")
    path.write_text(text + "\n")
    with pytest.raises(InputError, match="line 1: "):
        read_results(path)

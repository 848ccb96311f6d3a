"""Long work is counted, on a terminal and in a log, and only for whoever asked."""

import io

import pytest

from robustft import progress

pytest.importorskip("tqdm")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _counted(stream, monkeypatch, *, on):
    monkeypatch.setattr("sys.stderr", stream)
    with progress.showing(on):
        assert list(progress.each("abcd", "work\x1b[2J", 4, "letter")) == list("abcd")
    return stream.getvalue()


def test_nothing_is_shown_unasked(monkeypatch):
    assert _counted(Terminal(), monkeypatch, on=False) == ""


def test_a_log_gets_a_line_when_a_minute_is_over_and_no_control_character(monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 60.0)
    assert _counted(io.StringIO(), monkeypatch, on=True) == ""
    monkeypatch.setattr(progress, "_EVERY", 1e-9)
    text = _counted(io.StringIO(), monkeypatch, on=True)
    lines = text.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"work\\x1b[2J: {n} of 4 letters" for n in (1, 2, 3, 4)
    ]
    assert all(", about " in line and line.endswith(" left") for line in lines)
    assert "\r" not in text


def test_a_terminal_has_a_bar_that_is_cleared(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.showing(True), progress.bar("work", 4, "letter", done=1) as bar:
        bar.start_t -= 10  # as if it had begun before
        bar.last_print_t -= 10
        bar.update()
        shown = stream.getvalue()
        with progress.aside():
            assert stream.getvalue() != shown  # cleared for whoever prints
    assert "2/4" in shown
    assert stream.getvalue().endswith("\r")

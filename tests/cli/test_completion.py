"""The completion script of a shell knows the verbs, their options and the values of these."""

import shutil
import subprocess

import pytest

from robustft.cli.app import VERBS, run

pytest.importorskip("shtab")


def _completed(script, *words):
    program = (
        f'source "{script}"; COMP_WORDS=({" ".join(words)} ""); '
        f"COMP_CWORD={len(words)}; COMP_LINE='{' '.join(words)} '; _shtab_robustft; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_verbs_options_and_values(tmp_path, capsys):
    assert run(["completion", "--shell", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    first = {verb.partition(" ")[0] for verb in VERBS}
    assert {*first, "doctor"} <= _completed(script, "robustft")
    assert {"ls", "check"} <= _completed(script, "robustft", "data")
    assert _completed(script, "robustft", "train", "--select") == {"last", "best"}
    assert {"r-adapter", "dive"} <= _completed(script, "robustft", "train", "--method")
    assert "--no-decay-all" in script.read_text()


def test_every_shell_gets_a_script_and_no_other(monkeypatch, capsys):
    for shell in ("zsh", "fish", "tcsh"):
        assert run(["completion", "--shell", shell]) == 0
        assert "wise-ft" in capsys.readouterr().out
    monkeypatch.setenv("SHELL", "/bin/ksh")
    assert run(["completion"]) == 2
    assert capsys.readouterr().err == (
        "robustft: --shell: got 'ksh', expected one of bash, zsh, fish, tcsh\n"
    )

"""`auto` takes a card's kernel once it has proven itself, and never one that failed.

The card here is the CPU: kernels under the name "triton" are the C++ ones, whole or broken.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
import warnings

import pytest
import torch
import torch.nn.functional as F

from robustft import backends, cache, ops
from robustft.backends import proof
from robustft.backends.proof import verdicts
from robustft.errors import InputError, InputWarning

from .card import CPU, Card

card_backends = ("triton", "cuda", verdicts.TUNED)


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(9, 16, generator=generator), dim=1) for _ in range(4)]


def loss(dtype=torch.float32):
    return ops.dive_loss(*(x.to(dtype) for x in features()), torch.zeros(16))


@pytest.fixture
def card(monkeypatch, tmp_path, native):
    found = Card(monkeypatch, tmp_path)
    yield found
    monkeypatch.undo()
    found.forget()


def test_a_good_kernel_is_taken_from_the_first_call_on(card):
    expected = card.plain.forward(*features(), torch.zeros(16), 0.99, True)
    assert torch.equal(loss()[0], expected[0])
    proving = card.calls
    assert proving > 1
    loss()
    assert card.calls == proving + 1
    assert card.chosen == "triton"
    assert card.written() == {"dive triton float32": verdicts.Verdict(True)}


def test_every_dtype_proves_itself(card):
    loss()
    before = card.calls
    loss(torch.float16)
    assert card.calls > before + 1
    assert set(card.written()) == {"dive triton float32", "dive triton float16"}


def test_another_process_knows_what_one_found(card):
    loss()
    card.forget()
    before = card.calls
    loss()
    assert card.calls == before + 1


def test_the_caller_s_settings_and_generators_are_left_alone(card):
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        loss()
    assert card.chosen == "triton"
    assert torch.equal(torch.get_rng_state(), state)


def _one_lane(found):
    found[0].view(-1)[3] *= 1.5
    return found


def _calls(fault, every):
    """The fault at every so-manieth call."""
    counted = iter(range(1 << 30))
    return lambda found: fault(found) if next(counted) % every == every - 1 else found


BROKEN = {
    "a wrong bound": ("forward", lambda found: (found[0] * 66 / 67, *found[1:]), "AVL is off by"),
    "one wrong lane": ("backward", _one_lane, "gradient of image is off by"),
    "random bits": (
        "forward",
        _calls(lambda found: (found[0] * (1 + 2e-7), *found[1:]), 2),
        "AVL differs from call to call",
    ),
    "NaN swallowed": (
        "forward",
        lambda found: tuple(x.nan_to_num() for x in found),
        "is not finite where it should be",
    ),
    "a wrong shape": ("backward", lambda found: (found[0][:1], found[1]), "has shape (1, 512)"),
    "no launch": (
        "forward",
        lambda found: (_ for _ in ()).throw(RuntimeError("out of\nshared memory")),
        "RuntimeError: out of shared memory",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_kernel_is_never_used_and_said_once(card, kind):
    function, fault, why = BROKEN[kind]
    setattr(card, f"break_{function}", fault)
    expected = card.plain.forward(*features(), torch.zeros(16), 0.99, True)
    with pytest.warns(InputWarning, match="did not prove itself on cpu") as said:
        assert torch.equal(loss()[0], expected[0])
    assert len(said) == 1
    assert why in str(said[0].message)
    assert card.chosen == "cpu"
    assert not card.written()["dive triton float32"].passed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = card.calls
        loss()
    assert card.calls == before


def test_a_kernel_slower_than_the_reference_is_not_taken(card):
    verdicts.write("triton", CPU, "dive triton float32", verdicts.Verdict(True, "", 0.7))
    assert card.chosen == "cpu"
    assert "0.70 × the reference's speed, so auto does not take it" in (
        card.written()["dive triton float32"].said()
    )
    card.forget()
    verdicts.write("triton", CPU, "dive triton float32", verdicts.Verdict(True, "", 1.2))
    assert card.chosen == "triton"


def test_a_named_backend_needs_no_proof(card):
    ops.dive_loss(*features(), torch.zeros(16), backend="triton")
    assert card.calls == 1


@pytest.mark.parametrize(("word", "known", "chosen"), [
    ("off", True, "cpu"),
    ("proven", True, "triton"),
    ("proven", False, "cpu"),
    ("prove", False, "triton"),
])  # fmt: skip
def test_the_user_says_what_is_trusted(card, monkeypatch, word, known, chosen):
    if known:
        loss()
    card.forget()
    monkeypatch.setenv("ROBUSTFT_TRUST", word)
    assert card.chosen == chosen


def test_another_word_is_an_error(card, monkeypatch):
    monkeypatch.setenv("ROBUSTFT_TRUST", "always")
    with pytest.raises(InputError, match="ROBUSTFT_TRUST: got 'always', expected one of prove"):
        loss()


def test_a_compiled_graph_takes_what_was_proven_before_it(card):
    def step(*given):
        return ops.dive_loss(*given)[0] * 1

    given = *features(), torch.zeros(16)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*given), step(*given))  # the second one proves
    proving = card.calls
    compiled(*given)
    if not torch.__version__.startswith("2.11."):  # which traces anew after a proof
        assert card.calls == proving  # the graph has the cpu backend
    proving = card.calls
    torch.compiler.reset()
    compiled(*given)
    assert card.calls > proving
    torch.compiler.reset()


def test_a_capture_takes_what_was_proven_before_it(card, monkeypatch):
    with pytest.MonkeyPatch.context() as capturing:
        capturing.setattr(proof, "_traced", lambda device: True)
        loss()
        assert card.calls == 0
        assert card.chosen == "cpu"
    loss()  # what a capture found out is not for ever
    assert card.chosen == "triton"
    monkeypatch.setattr(proof, "_traced", lambda device: True)
    card.forget()
    assert card.chosen == "triton"


def test_what_counts_as_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert proof._traced(torch.device("cuda"))
    assert not proof._traced(CPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert not proof._traced(torch.device("cuda"))


def test_nothing_is_proven_on_tensors_that_hold_nothing(card):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert loss()[0].shape == ()
    assert card.calls == 0


def test_a_folder_that_cannot_be_written_leaves_it_to_memory(card, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(cache, "folder", lambda: blocked)
    loss()
    proving = card.calls
    loss()
    assert card.calls == proving + 1
    assert card.written() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"verdicts": 3}', '{"verdicts": {"x": []}}'])
def test_a_damaged_file_is_as_none(card, text):
    loss()
    verdicts.path("triton", CPU).write_text(text)
    card.forget()
    before = card.calls
    loss()
    assert card.calls > before + 1
    assert card.written() == {"dive triton float32": verdicts.Verdict(True)}


def test_other_sources_have_to_prove_themselves_again(card, monkeypatch):
    loss()
    card.forget()
    monkeypatch.setattr(verdicts, "_sources", lambda backend: "changed")
    before = card.calls
    loss()
    assert card.calls > before + 1


def test_the_sources_are_those_of_the_kernels():
    files = {backend: {f.name for f in verdicts.source_files(backend)} for backend in card_backends}
    for own in files.values():
        assert {"verdicts.py", "screening.py"} <= own
    assert {"mpm_nce_tiles.py", "configs.py"} <= files["triton"]
    assert {"dive_forward.cu", "nearest_wgmma.cu", "ptx.cuh", "launcher.py"} <= files["cuda"]
    assert "dive_forward.cu" not in files["triton"]
    assert files["tuned"] == files["triton"] | files["cuda"]
    hashes = {verdicts._sources(backend) for backend in card_backends}
    assert len(hashes) == 3
    assert {len(text) for text in hashes} == {64}


def test_processes_that_meet_prove_once(card, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ranks = [
        subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    asked = [json.loads(rank.communicate(timeout=200)[0]) for rank in ranks]
    assert sorted(asked) == [0, 1]


RANK = """
import json, torch
from robustft.backends import proof
times = 0
def prove(*_):
    global times
    times += 1
    import time
    time.sleep(1)
    return proof.Verdict(True)
proof.prove = prove
assert proof.trusted("dive", "triton", ("", ""), "cpu", torch.float32)
print(json.dumps(times))
"""


@pytest.mark.parametrize("op", backends.OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_of_the_cpu_would_prove_themselves(op, dtype, native):
    if op == "nearest" and dtype != torch.float32:
        pytest.skip("searches are in float32")
    assert _proven(op, "cpu", dtype) == proof.Verdict(True)


@pytest.mark.interpreter
@pytest.mark.skipif(not backends.interpreting(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("op", ["mpm_nce", "dive", "vrf", "rsa"])
def test_triton_kernels_prove_themselves_in_the_interpreter(op):
    assert _proven(op, "triton", torch.float16) == proof.Verdict(True)


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("op", "dtype"),
    [("dive", torch.float32), ("nearest", torch.float32), ("mpm_nce", torch.bfloat16)],
)
def test_cuda_kernels_prove_themselves_in_the_emulator(op, dtype):
    assert _proven(op, "cuda", dtype) == proof.Verdict(True)


def _proven(op, backend, dtype):
    modules = backends.IMPLEMENTATIONS[op]
    return proof.prove(op, backend, (modules[backend], modules["reference"]), CPU, dtype)


@contextlib.contextmanager
def _stood_in(monkeypatch, answer):
    """`verify` on a machine with a card, whose kernels' processes answer so."""
    runs = backends.Status("triton", True, "")
    plain = backends.status
    monkeypatch.setattr(backends, "status", lambda name: runs if name == "triton" else plain(name))
    monkeypatch.setattr(subprocess, "run", answer)
    yield


def _answer(returncode=0, stdout="", stderr=""):
    done = subprocess.CompletedProcess([], returncode, stdout, stderr)
    return lambda *_, **__: done


def _hang(command, timeout, **_):
    raise subprocess.TimeoutExpired(command, timeout)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_answer(0, 'noise\n[true, "", 2.5]\n'), "passed, 2.50 × the reference's speed"),
        (_answer(0, '[false, "AVL is off", null]'), "failed: AVL is off"),
        (_answer(-11, "", "a\nSegmentation fault"), "failed: exit code -11: Segmentation fault"),
        (_hang, "failed: no answer within 7 s"),
    ],
    ids=["good", "wrong", "crashed", "hangs"],
)
def test_verify_asks_every_kernel_in_its_own_process(card, monkeypatch, capsys, answer, says):
    from robustft.cli.verify import VerifyOptions, verify

    options = VerifyOptions(op=["dive", "nearest"], backend=["triton"], limit=7)
    call = functools.partial(verify, options)
    with _stood_in(monkeypatch, answer):
        if "failed" in says:
            with pytest.raises(InputError, match="verify: 4 of 4 kernels failed"):
                call()
        else:
            call()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:4]] == [
        ["dive", "triton", "float32"],
        ["dive", "triton", "bfloat16"],
        ["dive", "triton", "float16"],
        ["nearest", "triton", "float32"],
    ]
    assert all(line.endswith(says) for line in lines[:4])
    assert card.chosen == ("cpu" if "failed" in says else "triton")


HANGS = """
import os, sys, time
if "robustft.cli.one_proof" in sys.orig_argv:
    open(os.environ["HANGING"], "w").write(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="asks by a signal whether a process is there")
def test_a_kernel_that_hangs_is_cut_with_its_process(card, monkeypatch, capsys, tmp_path):
    from robustft.cli.verify import VerifyOptions, verify

    (tmp_path / "sitecustomize.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HANGING", str(tmp_path / "process"))
    began = time.monotonic()
    with pytest.raises(InputError, match="verify: 1 of 1 kernels failed"):
        verify(VerifyOptions(op=["dive"], backend=["triton"], dtype=["float32"], limit=3))
    assert time.monotonic() - began < 60
    assert "failed: no answer within 3 s" in capsys.readouterr().out
    process = int((tmp_path / "process").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    card.forget()
    with pytest.warns(InputWarning, match="no answer within 3 s"):
        assert card.chosen == "cpu"


def test_verify_without_a_card_says_why(capsys):
    from robustft.cli.app import run

    if backends.status("triton").runs or backends.status("cuda").runs:
        pytest.skip("there is a card, or what plays one")
    assert run(["verify"]) == 2
    assert "found no card's kernel that runs here (triton: " in capsys.readouterr().err

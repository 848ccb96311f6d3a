"""What a finished run says of itself."""

from types import SimpleNamespace

import torch

from robustft.cli.before_after import comparison, next_steps, unchanged


def _line(method, name, role, accuracy):
    return {"method": method, "dataset": name, "role": role, f"{name}:top1": accuracy}


def test_both_models_stand_beside_each_other_with_the_difference():
    before = [_line("zero-shot", "Birds", "id", 0.5), _line("zero-shot", "Inks", "forgetting", 0.9)]
    after = [_line("ft", "Birds", "id", 0.75), _line("ft", "Inks", "forgetting", 0.4)]
    rows = comparison(before, after, [{"dataset": "Inks", "RSA:euclidean": 0.51234}]).splitlines()
    assert [row.split() for row in rows] == [
        ["zero-shot", "ft", "difference"],
        ["Birds", "(id)", "50.0", "75.0", "+25.0"],
        ["Inks", "(forgetting)", "90.0", "40.0", "-50.0"],
        ["RSA", "on", "Inks", "1", "0.512"],
    ]


def test_a_model_that_predicts_as_before_is_noticed():
    a = {"x": SimpleNamespace(logits=torch.eye(3))}
    assert unchanged(a, {"x": SimpleNamespace(logits=2 * torch.eye(3))})
    assert not unchanged(a, {"x": SimpleNamespace(logits=torch.eye(3).flip(0))})


def test_the_next_steps_can_be_typed(tmp_path):
    run = f"'{tmp_path}/my run'"
    assert next_steps(tmp_path / "my run", ["wise-ft", "vrf"], strengths=True) == [
        f"robustft eval --run {run} --alpha 0,0.25,0.5,0.75,1",
        f"robustft wise-ft --run {run}",
        f"robustft vrf --run {run}",
        f"robustft report --results-db {run}",
    ]
    assert next_steps(tmp_path, []) == [f"robustft report --results-db {tmp_path}"]

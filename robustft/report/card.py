"""The model card of an exported model: README.md as the Hugging Face hub reads it.

The YAML head is written by huggingface_hub; names of data sets, classes and runs are text in it and
in the Markdown below it, never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustft.evaluate.results import counted, headline, headline_name
from robustft.optional import require
from robustft.report.text import markdown, readable

_ROLES = {"id": "in distribution", "ood": "shifted", "forgetting": "other classes, zero-shot"}
# What is measured by another number than top-1.
_TASKS = {"mean recall": "image-text-retrieval", "mIoU": "image-segmentation"}
_UNSAID = "not stated"


@dataclass(frozen=True)
class CardFacts:
    """What a card says. load: how to load the model, as code; None or empty is "not stated"."""

    title: str
    load: str
    method: str | None = None
    alpha: float | None = None
    base: str | None = None
    data: str | None = None
    classes: int | None = None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    head: bool = False


def model_card(facts: CardFacts, records: Sequence[Mapping[str, Any]]) -> str:
    """The text of a README.md. records: result lines of this model (robustft.evaluate.results)."""
    measured = [r for r in records if r.get("role") in _ROLES and headline(r) is not None]
    head = _yaml(facts, measured)
    lines = [f"---\n{head}\n---", f"# {markdown(facts.title)}", _sentence(facts)]
    lines += ["## Use", f"```python\n{facts.load}\n```"]
    if facts.head:
        lines.append(
            "The classifier's head is in classification_head.safetensors (`weight` [C, D], `bias` "
            "[C]; logits = normalised image features · weightᵀ + bias), its class names in "
            "classification_head.json."
        )
    lines += ["## Training", _table(("", ""), _training(facts))]
    lines += ["## Results", _results(measured)]
    lines += ["## Licence", _licence(facts)]
    return "\n\n".join(lines) + "\n"


def _yaml(facts: CardFacts, measured: Sequence[Mapping[str, Any]]) -> str:
    cards = require("huggingface_hub", extra="hub")
    task = "zero-shot-image-classification"
    results = [
        cards.EvalResult(
            task_type=_TASKS.get(
                headline_name(r), task if r["role"] == "forgetting" else "image-classification"
            ),
            dataset_type=readable(str(r["dataset"])),
            dataset_name=readable(str(r["dataset"])),
            dataset_split=str(r["split"]),
            metric_type=headline_name(r) or "accuracy",
            metric_name=headline_name(r) or "top-1 accuracy",
            metric_value=headline(r),
        )
        for r in measured
    ]
    data = cards.ModelCardData(
        license=facts.licence,
        license_name=facts.licence_name,
        license_link=facts.licence_link,
        library_name="open_clip",
        pipeline_tag=task,
        tags=["clip", "robust-fine-tuning", *([facts.method] if facts.method else [])],
        model_name=readable(facts.title) if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _sentence(facts: CardFacts) -> str:
    what = f"A CLIP model, {markdown(facts.base or _UNSAID)}"
    if facts.method is None:
        return f"{what}."
    text = f"{what}, fine-tuned with {markdown(facts.method)}"
    if facts.data:
        text += f" on {markdown(facts.data)}"
    if facts.alpha is not None:
        text += f", at strength α = {facts.alpha:g}"
    return f"{text}, and exported by robustft."


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    classes = None if facts.classes is None else str(facts.classes)
    named = {"Method": facts.method, "Began from": facts.base, "Data": facts.data}
    rows = {**named, "Classes": classes, **{k: str(v) for k, v in facts.settings.items()}}
    return [(key, value or _UNSAID) for key, value in rows.items()]


def _results(measured: Sequence[Mapping[str, Any]]) -> str:
    if not measured:
        return "None are recorded."
    rows = [
        (
            str(r["dataset"]),
            _ROLES[str(r["role"])],
            headline_name(r) or "top-1",
            f"{100 * (headline(r) or 0):.2f}",
            counted(r),
        )
        for r in measured
    ]
    return _table(("Data set", "Role", "Measure", "%", "Measured on"), rows)


def _licence(facts: CardFacts) -> str:
    name = facts.licence_name or facts.licence
    if name is None:
        return (
            "Not stated. Before publishing, state one that the licences of the model it began from "
            "and of the training data allow."
        )
    link = f" ({markdown(facts.licence_link)})" if facts.licence_link else ""
    return f"{markdown(name)}{link}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

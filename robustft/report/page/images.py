"""The sections of images: some of every set, where methods differ, and a VRF's near and far."""

from __future__ import annotations

from robustft.report import image_choice
from robustft.report.page.section import Report, Section

_ROLES = {
    "id": "in distribution",
    "ood": "shifted",
    "forgetting": "other classes",
}

_NAMED = 5  # files that cannot be read are named one by one


def strips(report: Report) -> Section | None:
    found = image_choice.strips(report.pictured, report.album)
    if not found:
        return None
    data = {"strips": found, "roles": _ROLES, "of": len(report.pictured)}
    return Section("images", "The images", "strips.html", data, folded=False)


def near_and_far(report: Report) -> Section | None:
    found = image_choice.near_and_far(report.pictured, report.album)
    if not found:
        return None
    of = sum(len(s.labels) for s in report.pictured if s.role in image_choice.WEIGHED)
    data = {"found": found, "of": of, "seed": report.pictured[0].seed}
    return Section("near-far", "Near and far from the zero-shot failures", "near_far.html", data)


def differing(report: Report) -> Section | None:
    """Last of the three, and says what none of them could show."""
    found = image_choice.differing(report.pictured, report.album)
    unread = [*report.outcomes.notes, *report.album.notes]
    notes = [f"Left out: {note}" for note in unread[:_NAMED]]
    if more := len(unread) - len(notes):
        notes.append(f"So are {more} more files of samples.")
    if gone := len(report.album.gone):
        notes.append(
            f"{gone} image{'s' * (gone > 1)} could not be shown: the file is gone, or no image "
            "that can be read."
        )
    if report.album.full:
        notes.append("Some images are left out, to keep this file small.")
    if not found and not notes:
        return None
    data = {
        "found": found,
        "of": sum(int(image_choice.split(s).sum()) for s in report.pictured),
        "notes": notes,
        "seed": min((s.seed for s in report.pictured), default=0),
    }
    return Section("differing", "Where methods differ", "differing.html", data)

"""Which images a report shows, and what it says beside them.

Some of every set; images on which methods differ, as many of each set; and of a VRF those nearest
to the zero-shot failures and farthest from them. The choice depends on the results and on the names
of the sets alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustft.accuracy import Predictions
from robustft.data.thumbnails import fixed_order
from robustft.report.album import Album, Picture
from robustft.report.names import Row, display
from robustft.report.outcomes import Shared

STRIP, DIFFERING, ENDS, A_SET = 6, 24, 6, 2
"""Images of a set; images on which methods differ, in all; of either end of a VRF's distances, and
of these at most so many of one set."""
WEIGHED = ("id", "ood")  # roles of sets with the training data's classes, of a VRF's distances
_MOST = 24  # sets that are pictured, evenly of all
_VRFS = 4
_TRIED = 40  # images of a set, of which the files may be gone


@dataclass(frozen=True)
class Shown:
    """A picture and the class that it is of."""

    picture: Picture
    label: str


@dataclass(frozen=True)
class Strip:
    """Some images of a set of n."""

    dataset: str
    role: str
    n: int
    images: list[Shown]


@dataclass(frozen=True)
class Answer:
    """A class that methods predicted: who, each with its confidence."""

    predicted: str
    right: bool
    by: list[tuple[str, float]]


@dataclass(frozen=True)
class Differing:
    """An image on which methods differ, and what each of them says, the right ones first."""

    dataset: str
    image: Shown
    answers: list[Answer]


@dataclass(frozen=True)
class Weighed:
    """An image as a VRF sees it: its distance to the zero-shot failures, the weight of the
    fine-tuned model, and what that model, the zero-shot model and the VRF say."""

    dataset: str
    image: Shown
    distance: float
    weight: float
    answers: list[tuple[str, str, float, bool]]  # who, class, confidence, right


@dataclass(frozen=True)
class NearAndFar:
    """A VRF's nearest and farthest images."""

    name: str
    near: list[Weighed]
    far: list[Weighed]


def strips(sets: Sequence[Shared], album: Album) -> list[Strip]:
    """Some images of every set that has any to show. Half of the album's room is left to others."""
    found = []
    for shared in spread(sets):
        if album.left < album.budget // 2:
            album.full = True
            break
        some = itertools.islice(_places(shared, album), _TRIED)
        images = _first(_shown(shared, place, album) for place in some)
        if chosen := list(itertools.islice(images, STRIP)):
            found.append(Strip(shared.dataset, shared.role, len(shared.labels), chosen))
    return found


def differing(sets: Sequence[Shared], album: Album) -> list[Differing]:
    """Images that one method has right and another one wrong, as many of every set."""
    some = spread(sets)
    each = max(1, round(DIFFERING / max(len(some), 1)))
    found = []
    for shared in some:
        for place in itertools.islice(_split(shared, album), each):
            if (image := _shown(shared, place, album)) is not None:
                found.append(Differing(shared.dataset, image, _answers(shared, place, album)))
    return found


def near_and_far(sets: Sequence[Shared], album: Album) -> list[NearAndFar]:
    """Of every VRF, over the sets with the training data's classes."""
    mine = [shared for shared in sets if shared.role in WEIGHED]
    rows = dict.fromkeys(
        row for shared in mine for row, said in shared.said.items() if said.weighing is not None
    )
    found = []
    for row in list(rows)[:_VRFS]:
        near, far = (_end(mine, row, album, farthest=far) for far in (False, True))
        if near and far:
            found.append(NearAndFar(display(row), near, far))
    return found


def split(shared: Shared) -> Tensor:
    """Which images some methods have right and others wrong: bool [N]."""
    right = torch.stack([said.right for said in shared.said.values()])
    return right.any(dim=0) & ~right.all(dim=0)


def spread(sets: Sequence[Shared]) -> Sequence[Shared]:
    """At most _MOST sets, evenly over all of them."""
    return sets[:: -(-len(sets) // _MOST) or 1]


def _first(items: Iterator[Shown | None]) -> Iterator[Shown]:
    return (item for item in items if item is not None)


def _places(shared: Shared, album: Album) -> Iterator[int]:
    """Places among the samples whose images can be shown, in the set's fixed order."""
    images = album.set_of(shared)
    if images is None:
        return
    at = {row: place for place, row in enumerate(shared.index.tolist())}
    for row in fixed_order(images.dataset, shared.index.numpy()).tolist():
        if album.has(shared, at[row]):
            yield at[row]


def _split(shared: Shared, album: Album) -> Iterator[int]:
    """Places on which methods differ: in turn what the zero-shot model has wrong and a fine-tuned
    one right, and the reverse; then what differs otherwise."""
    differ = split(shared)
    places = [place for place in _places(shared, album) if bool(differ[place])]
    first = shared.said.get(("zero-shot", None))
    if first is None:
        yield from places
        return
    lost = [place for place in places if bool(first.right[place])]
    gained = [place for place in places if not bool(first.right[place])]
    for pair in itertools.zip_longest(lost, gained):
        yield from (place for place in pair if place is not None)


def _answers(shared: Shared, place: int, album: Album) -> list[Answer]:
    label = int(shared.labels[place])
    by: dict[int, list[tuple[str, float]]] = {}
    for row, said in shared.said.items():
        predicted, confidence = _at(said.said, place)
        by.setdefault(predicted, []).append((display(row), confidence))
    order = sorted(by, key=lambda predicted: (predicted != label, -len(by[predicted]), predicted))
    return [Answer(album.class_name(shared, c), c == label, by[c]) for c in order]


def _end(sets: Sequence[Shared], row: Row, album: Album, *, farthest: bool) -> list[Weighed]:
    """The images of smallest or largest distance, at most A_SET of one set."""
    places: list[tuple[float, Shared, int]] = []
    for shared in sets:
        if (said := shared.said.get(row)) is None or said.weighing is None:
            continue
        distance = said.weighing.distance
        some = distance.isfinite().nonzero().flatten()
        order = some[distance[some].argsort(descending=farthest, stable=True)]
        shown = [p for p in order[:256].tolist() if album.has(shared, p, said)][:A_SET]
        places += [(float(distance[place]), shared, place) for place in shown]
    places.sort(key=lambda found: -found[0] if farthest else found[0])
    cards = [_weighed(shared, place, row, album) for _, shared, place in places[:ENDS]]
    return [card for card in cards if card is not None]


def _weighed(shared: Shared, place: int, row: Row, album: Album) -> Weighed | None:
    said = shared.said[row]
    assert said.weighing is not None
    image = _shown(shared, place, album, row)
    if image is None:
        return None
    label = int(shared.labels[place])
    models = (
        ("Zero-shot", said.weighing.zeroshot),
        (display((row[1] or "ft", None)), said.weighing.finetuned),
        (display(row), said.said),
    )
    answers = []
    for name, one in models:
        predicted, confidence = _at(one, place)
        answers.append((name, album.class_name(shared, predicted), confidence, predicted == label))
    weight, distance = float(said.weighing.weight[place]), float(said.weighing.distance[place])
    return Weighed(shared.dataset, image, distance, weight, answers)


def _shown(shared: Shared, place: int, album: Album, row: Row | None = None) -> Shown | None:
    own = None if row is None else shared.said[row]
    picture = album.picture(shared, place, own)
    if picture is None:
        return None
    return Shown(picture, album.class_name(shared, int(shared.labels[place])))


def _at(said: Predictions, place: int) -> tuple[int, float]:
    return int(said.predicted[place]), float(said.confidence[place])

"""The corruptions' names, and how a data set is named under one: `fog:SET`, `fog-3:SET`."""

from __future__ import annotations

import re
from dataclasses import dataclass

NAMES = (
    "gaussian-noise",
    "shot-noise",
    "impulse-noise",
    "defocus-blur",
    "glass-blur",
    "motion-blur",
    "zoom-blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic-transform",
    "pixelate",
    "jpeg-compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
ALL = "corruptions"  # stands for every one of them
_PREFIX = re.compile(rf"({'|'.join((*NAMES, ALL))})(?:-([1-5]))?:(?=.)", re.DOTALL)


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, or at all five, None."""

    name: str
    severity: int | None = None

    def __str__(self) -> str:
        return self.name if self.severity is None else f"{self.name}-{self.severity}"

    @property
    def each(self) -> list[Corruption]:
        """Itself, or all fifteen that `corruptions` stands for."""
        return [Corruption(name, self.severity) for name in NAMES] if self.name == ALL else [self]


@dataclass(frozen=True)
class Corrupted:
    """What the images of a data set are under, and what all of its corruptions are called together.

    imagenet: whether they are ImageNet's validation images, for which AlexNet's errors are known.
    """

    by: Corruption
    together: str
    imagenet: bool = False


def corruption_of(text: str) -> tuple[Corruption | None, str]:
    """`fog-3:digits` is (fog at severity 3, "digits"); a name without one is (None, itself)."""
    match = _PREFIX.match(text)
    if match is None:
        return None, text
    severity = None if match[2] is None else int(match[2])
    return Corruption(match[1], severity), text[match.end() :]

"""Captions drawn from templates as samples are loaded; nothing is written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from robustft.data.templates import Template, check_template, fill
from robustft.errors import InputError


class CaptionTable:
    """Every class in every template, tokenised once.

    classnames: C names; templates: T format strings with "{}" or functions of a name; tokenizer:
    open_clip's, texts to int tokens [n, L]. `tokens` is int64 [C, T, L].
    """

    def __init__(
        self,
        classnames: Sequence[str],
        templates: Sequence[Template],
        tokenizer: Callable[[list[str]], Tensor],
    ) -> None:
        if not classnames or not templates:
            raise InputError(
                "captions need at least one class name and one template, got "
                f"{len(classnames)} and {len(templates)}"
            )
        for template in templates:
            check_template(template)
        self.captions = [[fill(t, name) for t in templates] for name in classnames]
        flat = [text for row in self.captions for text in row]
        self.tokens = tokenizer(flat).long().view(len(classnames), len(templates), -1)

    def pick(self, seed: tuple[int, ...]) -> int:
        """The template that `seed` (integers ≥ 0) draws: uniform, and a pure function of it."""
        draw = int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0])
        return draw % self.tokens.shape[1]

    def draw(self, label: int, seed: tuple[int, ...]) -> Tensor:
        """Tokens int64 [L] of class `label` in the template drawn by `seed`, such as
        (seed, epoch, index). Errors: InputError for a label outside the classes."""
        if not 0 <= label < len(self.tokens):
            raise InputError(f"label must lie in 0..{len(self.tokens) - 1}, got {label}")
        return self.tokens[label, self.pick(seed)]

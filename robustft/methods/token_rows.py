"""Texts made of tokens: random ones, and captions with a phrase put behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustft.errors import InputError
from robustft.models import Clip


class Tokens:
    """Rows of tokens [n, L] as the byte-pair tokenizer of `clip` makes them: start, text, end, 0s.

    method: who asks, for the error. Errors: InputError for a tokenizer of another kind, which has
    no numbers for start and end that could be relied on.
    """

    def __init__(self, clip: Clip, *, method: str) -> None:
        tokenizer: Any = clip.tokenizer
        names = ("sot_token_id", "eot_token_id")
        ids = [getattr(tokenizer, name, None) for name in names]
        row = tokenizer(["a"])[0].tolist()
        if not all(isinstance(i, int) for i in ids) or [row[0], row[2]] != ids or any(row[3:]):
            raise InputError(
                f"model: {clip.name} has no byte-pair tokenizer of open_clip's, expected one for "
                f"{method}, which makes texts out of tokens"
            )
        self.start, self.end = int(row[0]), int(row[2])
        self.width = len(row)
        self._tokenizer = tokenizer

    def check_room(self, length: int) -> None:
        """InputError unless a text of `length` tokens fits."""
        if length > self.width - 2:
            raise InputError(
                f"length: got {length}, expected at most {self.width - 2}: the model's texts have "
                f"{self.width} tokens with start and end"
            )

    def random(self, count: int, length: int) -> Tensor:
        """`count` texts of `length` tokens, uniform below the start token's number: int64 [count,
        L]. They are drawn on the CPU, from torch's default generator."""
        rows = torch.zeros(count, self.width, dtype=torch.long)
        rows[:, 0] = self.start
        rows[:, 1 : length + 1] = torch.randint(0, self.start, (count, length))
        rows[:, length + 1] = self.end
        return rows

    def of(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without start and end, as many as fit."""
        return [self._inner(row) for row in self._tokenizer(list(texts)).tolist()]

    def _inner(self, row: list[int]) -> list[int]:
        return row[1 : row.index(self.end)]


class Phrases(nn.Module):
    """Phrases that can be put behind captions, on rows of tokens.

    `after` gives the tokens of "a photo of a cat in the snow." for those of "a photo of a cat.",
    which byte-pair tokens allow: words do not run into each other.
    """

    ids: Tensor
    lengths: Tensor

    def __init__(self, tokens: Tokens, phrases: Sequence[str]) -> None:
        super().__init__()
        rows = tokens.of([f"{phrase}." for phrase in phrases])
        (self.period,) = tokens.of(["."])[0]
        self.end = tokens.end
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        # No part of a checkpoint: the method's identity tells phrases apart.
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("lengths", torch.tensor([len(r) for r in rows]), persistent=False)

    def __len__(self) -> int:
        return len(self.lengths)

    def after(self, captions: Tensor, which: Tensor) -> Tensor:
        """captions int [B, L], their last period dropped, with phrase `which` (int [B]) and a
        period behind them; what does not fit is cut as the tokenizer cuts it."""
        width = captions.shape[1]
        place = torch.arange(width, device=captions.device).expand(len(captions), -1)
        stop = (captions == self.end).int().argmax(dim=1, keepdim=True)
        last = captions.gather(1, stop - 1)
        stop = stop - ((last == self.period) & (stop > 1)).long()
        into = place - stop
        length = self.lengths[which].unsqueeze(1)
        phrase = self.ids[which].gather(1, into.clamp(0, self.ids.shape[1] - 1))
        row = torch.where(place < stop, captions, torch.where(into < length, phrase, 0))
        return row.masked_fill(place == (stop + length).clamp(max=width - 1), self.end)

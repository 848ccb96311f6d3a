"""A kernel of dive that plays a card's, for tests of proofs and of tuning."""

import importlib
import sys
import types

import torch

from robustft import backends, cache
from robustft.backends.proof import verdicts

CPU = torch.device("cpu")


class Card:
    """A kernel of dive that counts its calls, and may be broken."""

    def __init__(self, monkeypatch, folder):
        self.plain = importlib.import_module("robustft.backends.cpu.dive")
        self.calls = 0
        self.monkeypatch = monkeypatch
        module = types.ModuleType("a_card_s_dive")
        module.forward, module.backward = self.forward, self.backward
        self.break_forward = self.break_backward = lambda found: found
        monkeypatch.setitem(sys.modules, "a_card_s_dive", module)
        table = backends.IMPLEMENTATIONS["dive"] | {"triton": "a_card_s_dive"}
        monkeypatch.setitem(backends.IMPLEMENTATIONS, "dive", table)
        lines = ((None, "triton"), (None, "cpu"))
        monkeypatch.setitem(backends.AUTO["cpu"], "dive", lines)
        monkeypatch.setattr(backends, "interpreting", lambda: True)
        plain_status = backends.status
        runs = backends.Status("triton", True, "")
        monkeypatch.setattr(
            backends, "status", lambda name: runs if name == "triton" else plain_status(name)
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        self.forget()

    def forget(self):
        """As a new process."""
        backends.forget()
        for cached in (cache.folder, backends._obstacle, backends._implementation):
            cached.cache_clear()

    def forward(self, *inputs):
        self.calls += 1
        return self.break_forward(self.plain.forward(*inputs))

    def backward(self, *inputs):
        return self.break_backward(self.plain.backward(*inputs))

    @property
    def chosen(self):
        return backends.choose("dive", "cpu", torch.float32, "auto")

    def written(self):
        """What is on disk."""
        return verdicts.read("triton", CPU)

"""What the package's methods were published with, known without importing any of them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """Settings of a run as the method's paper or release states them for ImageNet."""

    epochs: int = 10
    batch_size: int = 512
    lr: float = 1e-5
    wd: float = 0.1
    warmup: int = 500
    grad_clip_norm: float | None = None
    min_lr: float = 0.0


#: By the methods' names, in the order of robustft.methods.
PUBLISHED = {
    "zero-shot": Published(epochs=0),
    "linear-probe": Published(epochs=5, lr=0.1, wd=0.0),
    "ft": Published(lr=3e-5, grad_clip_norm=1.0),
    "lp-ft": Published(grad_clip_norm=1.0),
    "flyp": Published(),
    "l2-sp": Published(lr=3e-5, wd=0.0, grad_clip_norm=1.0),
    "car-ft": Published(),
    "lipsum-ft": Published(batch_size=256, wd=0.0, warmup=5000),
    "starft": Published(),
    "snd": Published(wd=5e-4),
    "flyp-snd": Published(),
    "flyp-replay": Published(),
    "tpgm": Published(lr=3e-5, grad_clip_norm=1.0),
    "r-adapter": Published(lr=5e-4, wd=0.0, grad_clip_norm=1.0, min_lr=1e-6),
    "dive": Published(),
}

"""What some settings may be, known without torch: --help lists it."""

from __future__ import annotations

#: open_clip's names of precisions that are autocast, and torch's dtype of each; the weights stay
#: float32.
AUTOCAST: dict[str, str | None] = {
    "fp32": None,
    "bf16": "bfloat16",
    "fp16": "float16",
    "amp": "float16",
    "amp_bf16": "bfloat16",
}
#: torch's dtypes that kernels compute in.
KERNEL_DTYPES = ("float32", "bfloat16", "float16")
#: Weights of the fine-tuned model that mixtures try, the papers' grid.
ALPHAS: tuple[float, ...] = tuple(i / 10 for i in range(11))

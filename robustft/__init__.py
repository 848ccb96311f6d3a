"""robustft: robust fine-tuning of CLIP, with fused kernels for its losses.

`import robustft` needs torch, numpy and safetensors alone; the models, training and reports import
what they need where they need it.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["VRF", "FeatureBank", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import robustft` stays quick and the import direction stays one-way.
    if name == "VRF":
        from robustft.ensemble.vrf import VRF

        return VRF
    if name == "FeatureBank":
        from robustft.ops.bank import FeatureBank

        return FeatureBank
    raise AttributeError(f"module 'robustft' has no attribute {name!r}")

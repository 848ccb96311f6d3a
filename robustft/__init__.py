"""robustft: robust fine-tuning of CLIP, with fused kernels for its losses.

`import robustft` needs torch, numpy and safetensors alone; the models, training and reports import
what they need where they need it. `robustft.ops`, `robustft.losses`, `robustft.VRF` and
`robustft.FeatureBank` are there at once and imported at first use.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

from robustft.installation import not_built

if TYPE_CHECKING:
    from robustft import losses as losses
    from robustft import ops as ops
    from robustft.ensemble.vrf import VRF as VRF
    from robustft.ops.bank import FeatureBank as FeatureBank

__version__ = "0.1.0"
__all__ = ["VRF", "FeatureBank", "__version__", "losses", "ops"]

_LAZY = {
    "VRF": ("robustft.ensemble.vrf", "VRF"),
    "FeatureBank": ("robustft.ops.bank", "FeatureBank"),
    "losses": ("robustft.losses", None),
    "ops": ("robustft.ops", None),
}

if not TYPE_CHECKING:  # a type checker sees the imports above, and no attribute but those

    def __getattr__(name):
        # Lazy, so that `import robustft` stays quick and the import direction stays one-way.
        if name not in _LAZY:
            raise AttributeError(f"module 'robustft' has no attribute {name!r}")
        module, attribute = _LAZY[name]
        found = importlib.import_module(module)
        return found if attribute is None else getattr(found, attribute)

    def __dir__():
        return sorted({*globals(), *_LAZY})


_problem = not_built()
if _problem is not None:
    # Named "robustft" in place of a file and line of ours: one line, without source.
    warnings.warn_explicit(_problem, RuntimeWarning, filename="robustft", lineno=1)
del _problem

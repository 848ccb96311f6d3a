"""open_clip models, zero-shot heads, R-Adapter and weight-space operations.

Importing this needs torch alone; open_clip and safetensors are imported where they are used.
"""

from robustft.models.adapter import Adapter, AdapterConfig
from robustft.models.adapter_files import load_adapters, save_adapters
from robustft.models.adapter_set import (
    AdapterSet,
    adapters_of,
    add_adapters,
    merged_state_dict,
    plain_state_dict,
)
from robustft.models.checkpoints import Checkpoint, Head, read_checkpoint
from robustft.models.classifier_file import (
    classifier_metadata,
    load_classifier,
    save_classifier,
)
from robustft.models.clip import Clip, copy_clip, evaluating, load_clip
from robustft.models.export import save_hub_folder, save_open_clip
from robustft.models.heads import Classifier, encode_texts, resolve_templates, zero_shot_weights
from robustft.models.hugging_face import to_transformers
from robustft.models.weights import interpolate

templates = resolve_templates  # its name before it was a verb

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterSet",
    "Checkpoint",
    "Classifier",
    "Clip",
    "Head",
    "adapters_of",
    "add_adapters",
    "classifier_metadata",
    "copy_clip",
    "encode_texts",
    "evaluating",
    "interpolate",
    "load_adapters",
    "load_classifier",
    "load_clip",
    "merged_state_dict",
    "plain_state_dict",
    "read_checkpoint",
    "resolve_templates",
    "save_adapters",
    "save_classifier",
    "save_hub_folder",
    "save_open_clip",
    "templates",
    "to_transformers",
    "zero_shot_weights",
]

"""Features of frozen models: computed once, kept on disk, shared by runs and processes."""

from robustft.features.encode import image_features, text_features, token_rows
from robustft.features.rows import Rows, Unit
from robustft.features.store import FeatureStore

__all__ = ["FeatureStore", "Rows", "Unit", "image_features", "text_features", "token_rows"]

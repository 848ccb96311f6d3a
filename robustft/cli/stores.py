"""`--feature-store`: where a frozen model's features are kept, and what that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft import cache
from robustft.cli.options import setting

if TYPE_CHECKING:
    from robustft.features import FeatureStore
    from robustft.models import Clip

OFF = "off"


def feature_store() -> Any:
    """The setting of verbs that keep features by default."""
    return setting(
        None,
        "Folder for the frozen model's features, shared by all runs, or off to keep them in memory "
        f"[default: ${cache.FEATURES}, else features in the user's cache folder; robustft doctor "
        "says what it takes].",
    )


def located(spec: str | None) -> str | None:
    """The setting with an absolute path."""
    return spec if spec in (None, OFF) else str(Path(str(spec)).absolute())


def opened(spec: str | None) -> FeatureStore | None:
    """The store that the setting means; None for off."""
    from robustft.features import FeatureStore

    return None if spec == OFF else FeatureStore(spec)


def say(store: FeatureStore | None, clip: Clip, pairs: int, kinds: tuple[str, ...]) -> None:
    """Print where the features of reference pairs will be, and their size."""
    size = pairs * 4 * (len(kinds) * clip.embed_dim + clip.context_length)
    where = "memory" if store is None else str(store.root)
    print(f"their {' and '.join([*kinds, 'token'])} rows: {in_words(size)} in {where}")


def in_words(size: float) -> str:
    """Bytes as kB, MB or GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"

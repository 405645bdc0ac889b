"""Where downloads are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of downloads: ``$EDGEWISE_CACHE``, else the platform's cache folder for `edgewise`."""
    chosen = os.environ.get("EDGEWISE_CACHE")
    if chosen:
        return Path(chosen)
    import pooch

    return Path(pooch.os_cache("edgewise"))

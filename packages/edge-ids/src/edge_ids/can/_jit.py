"""Compile a function with Numba on first call, and keep the machine code beside the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_shared.errors import require


def compiled(function: Callable[..., Any]) -> Any:
    """Numba's ``njit`` with an on-disk cache; integer semantics are those of C's int64.

    Raises:
        MissingExtra: if Numba is not installed.
    """
    require("numba", "edge-ids[can]")
    import numba

    return numba.njit(cache=True, nogil=True)(function)

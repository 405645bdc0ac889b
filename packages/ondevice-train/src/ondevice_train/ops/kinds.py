"""Which activations have a packed form, and how many bytes it saves. Plain Python: planners need no torch."""

from __future__ import annotations

from math import ceil

PIECEWISE = ("relu", "relu6", "hardtanh", "leaky_relu", "hardsigmoid")
SMOOTH = ("hardswish", "silu", "gelu")


def saved_bytes(kind: str, elements: int, bits: int = 8) -> int:
    """Bytes that the op `kind` saves for `elements` elements: one bit each, or `bits` each for a smooth kind."""
    return ceil(elements / 8) if kind in PIECEWISE else ceil(elements * bits / 8)

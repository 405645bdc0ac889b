"""Byte sizes and counts as people write them."""

from __future__ import annotations

import re

from edge_shared.errors import InputError

_FACTORS = {
    "": 1, "b": 1,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int | float) -> int:
    """Parse ``256kB`` (1000), ``1.5MiB`` (1024²) or plain bytes into a whole number of bytes.

    Raises:
        InputError: if the text is no size, or not a whole positive number of bytes once rounded.
    """
    if isinstance(text, int | float):
        text = repr(text)
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise InputError(f"{text!r} is no byte size; write 256kB, 1.5MiB or a plain number of bytes")
    size = float(match[1]) * factor
    if not 0 < size < 2**63:
        raise InputError(f"{text!r} is out of range; a byte size is positive and below 8 EiB")
    return round(size)


def format_bytes(size: float) -> str:
    """Format a size in binary units with three significant digits: ``172 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"


def format_count(count: float) -> str:
    """Format a count with an SI prefix and three significant digits: ``3.47 M``."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(count) < 1000 or prefix == "T":
            break
        count /= 1000
    return f"{count:.3g} {prefix}".strip()

"""Numbers as text, the same on the screen and in reports."""

from __future__ import annotations

from fairnet.audit import Estimate


def percent(value: float | None) -> str:
    """A share as text, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(estimate: Estimate) -> str:
    """An estimate with its interval as text."""
    if estimate.low is None or estimate.high is None:
        return percent(estimate.value)
    return f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"

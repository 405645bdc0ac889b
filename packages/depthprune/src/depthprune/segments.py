"""The exact choice of which neighbours to merge: a shortest path over cut points."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Combine = Literal["sum", "max"]


def best(n: int, cost: Callable[[int, int], float], combine: Combine = "sum") -> tuple[float, list[tuple[int, int]]]:
    """Cut n layers into segments, each run as one layer, at the lowest total cost.

    Two-stage dynamic programming in the literature (Kim et al., ICML 2023) uses the same path; O(n^2) costs are asked for.

    Args:
        n: layers in a chain.
        cost: ``cost(i, j)`` of layers i..j-1 as one; infinity where they cannot be merged. ``cost(i, i+1)`` is layer i as it is.
        combine: ``sum`` for latency and MACs, ``max`` for peak memory (equal peaks: the smaller sum wins).

    Returns:
        The cost and the segments (i, j) in order. Equal costs: the fewer segments win.
    """
    Value = tuple[float, float, int]
    start: Value = (0.0, 0.0, 0)
    values: list[Value] = [start] + [(math.inf, math.inf, 0)] * n
    back = [0] * (n + 1)
    for j in range(1, n + 1):
        for i in range(j):
            if math.isinf(values[i][0]):
                continue
            step = cost(i, j)
            head = max(values[i][0], step) if combine == "max" else values[i][0] + step
            value = (head, values[i][1] + step, values[i][2] + 1)
            if value < values[j]:
                values[j], back[j] = value, i
    cuts, j = [], n
    while j > 0:
        cuts.append((back[j], j))
        j = back[j]
    return values[n][0], cuts[::-1]

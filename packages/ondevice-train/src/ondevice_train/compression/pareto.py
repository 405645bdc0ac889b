"""Choose one option per layer: the least loss within a budget of bytes, exactly.

Prefixes of choices that another prefix beats in both bytes and loss are dropped layer by layer; what stays is the exact
front. Neither the exponential search of the ASI paper nor the rounding of WASI's table (which can exceed the budget).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from edge_shared.errors import CheckFailed
from edge_shared.units import format_bytes

MAX_FRONT = 20_000
"""Above so many prefixes the front is thinned to the best of each slice of bytes: still within budget, no longer proven best."""


_MAX_COMBINATIONS = 200  # of the options within one block


class Infeasible(CheckFailed):
    """No choice fits; `smallest` is the least number of bytes that would do."""

    def __init__(self, budget: float, smallest: float) -> None:
        super().__init__(
            f"the budget of {format_bytes(budget)} cannot be met; the smallest feasible one is {format_bytes(smallest)} ({smallest:.0f} bytes)"
        )
        self.smallest = smallest


def select(bytes_: Sequence[Sequence[float]], loss: Sequence[Sequence[float]], budget: float) -> tuple[int, ...]:
    """Index of the chosen option of every layer: minimal total loss among those with total bytes <= budget.

    Args:
        bytes_, loss: one row per layer, one column per option (rows may differ in length).
        budget: in the units of `bytes_`.

    Raises:
        Infeasible: with the smallest feasible budget.
    """
    smallest = sum(min(row) for row in bytes_)
    if smallest > budget:
        raise Infeasible(budget, smallest)
    # What the layers still to come need at the least is not there to spend.
    reserve = np.cumsum([0.0, *[min(row) for row in reversed(bytes_)]])[::-1][1:]
    size, cost = np.zeros(1), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for row, losses, left in zip(bytes_, loss, reserve, strict=True):
        options = np.arange(len(row))
        all_size = (size[:, None] + np.asarray(row, float)[None]).ravel()
        all_cost = (cost[:, None] + np.asarray(losses, float)[None]).ravel()
        parent = np.repeat(np.arange(len(size)), len(row))
        option = np.tile(options, len(size))
        fits = all_size + left <= budget * (1 + 1e-15)
        order = np.lexsort((all_cost[fits], all_size[fits]))
        index = np.flatnonzero(fits)[order]
        best = np.minimum.accumulate(np.concatenate(([np.inf], all_cost[index][:-1])))
        index = index[all_cost[index] < best]
        if len(index) > MAX_FRONT:
            slices = np.linspace(0, len(index) - 1, MAX_FRONT).round().astype(int)
            index = index[np.unique(slices)]
        size, cost = all_size[index], all_cost[index]
        history.append((parent[index], option[index]))
    at = int(np.argmin(cost))
    chosen = []
    for parents, options in reversed(history):
        chosen.append(int(options[at]))
        at = int(parents[at])
    return tuple(reversed(chosen))


def front(bytes_: Sequence[Sequence[float]], loss: Sequence[Sequence[float]]) -> list[tuple[float, float, tuple[int, ...]]]:
    """Bytes, loss and choices of the combinations of one option per row that no other beats in both, by growing bytes.

    At most 200 of them, evenly spread.
    """
    found: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for row, losses in zip(bytes_, loss, strict=True):
        grown = sorted(
            (size + more, cost + worse, (*chosen, index))
            for size, cost, chosen in found
            for index, (more, worse) in enumerate(zip(row, losses, strict=True))
        )
        found, best = [], float("inf")
        for entry in grown:
            if entry[1] < best:
                found.append(entry)
                best = entry[1]
        if len(found) > _MAX_COMBINATIONS:
            found = [found[round(at)] for at in np.linspace(0, len(found) - 1, _MAX_COMBINATIONS)]
    return found

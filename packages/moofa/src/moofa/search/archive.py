"""Every network that a search has looked at, each once, with its score and its costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moofa.budget import Budget
from moofa.costs import Costs, CostTable
from moofa.space import Choice

Score = Callable[[np.ndarray], np.ndarray]
"""Predicted accuracy of gene rows (n, columns): (n,) floats."""


@dataclass(frozen=True)
class Found:
    """One network that a search found."""

    choice: Choice
    score: float
    costs: dict[str, float]


class Archive:
    """Networks, scores and costs; what is asked twice is computed once.

    Args:
        table: costs of the space.
        score: predicted accuracy; called with networks that it has not seen yet.
    """

    def __init__(self, table: CostTable, score: Score):
        self.table = table
        self.score = score
        self._index: dict[bytes, int] = {}
        self._rows: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._costs: list[Costs] = []

    def __len__(self) -> int:
        return len(self._index)

    def add(self, rows: np.ndarray, costs: Costs | None = None) -> np.ndarray:
        """Evaluate the rows that are new; returns each row's place in the archive, (n,) int64.

        Args:
            rows: canonical gene rows (n, columns).
            costs: theirs, if known already.
        """
        rows = np.ascontiguousarray(rows, dtype=np.int16)
        places = np.empty(len(rows), dtype=np.int64)
        fresh: list[int] = []
        for number, row in enumerate(rows):
            key = row.tobytes()
            if key not in self._index:
                self._index[key] = len(self._index)
                fresh.append(number)
            places[number] = self._index[key]
        if fresh:
            new = rows[fresh]
            self._rows.append(new)
            self._scores.append(np.asarray(self.score(new), dtype=np.float64))
            self._costs.append(costs.take(fresh) if costs is not None else self.table.costs(new))
        return places

    @property
    def rows(self) -> np.ndarray:
        """All rows, in the order in which they came."""
        self._merge()
        return self._rows[0]

    @property
    def scores(self) -> np.ndarray:
        """Their scores, (n,)."""
        self._merge()
        return self._scores[0]

    @property
    def costs(self) -> Costs:
        """Their costs."""
        self._merge()
        return self._costs[0]

    def _merge(self) -> None:
        if len(self._rows) > 1:
            self._rows = [np.concatenate(self._rows)]
            self._scores = [np.concatenate(self._scores)]
            names = self._costs[0].__dataclass_fields__
            self._costs = [Costs(**{name: np.concatenate([getattr(costs, name) for costs in self._costs]) for name in names})]

    def best(self, budget: Budget) -> Found | None:
        """The network of the highest score within the budget; of equal ones the one that needs least RAM, then fewest MACs."""
        allowed = np.flatnonzero(budget.allows(self.costs))
        if not len(allowed):
            return None
        costs = self.costs.take(allowed)
        order = np.lexsort((costs.macs, costs.ram, -self.scores[allowed]))
        return self.found(int(allowed[order[0]]))

    def found(self, place: int) -> Found:
        """The network at one place."""
        return Found(self.table.genes.decode(self.rows[place]), float(self.scores[place]), self.costs.row(place))

    def front(self, names: tuple[str, ...] = ("ram",), budget: Budget | None = None) -> list[Found]:
        """The networks that no other beats in score and all named costs, by rising cost.

        Args:
            names: costs to keep low, such as ``("ram", "flash", "macs")``.
            budget: only networks within it.
        """
        allowed = np.flatnonzero((budget or Budget()).allows(self.costs))
        points = np.column_stack([-self.scores[allowed], *(getattr(self.costs, name)[allowed] for name in names)])
        return [self.found(int(allowed[place])) for place in non_dominated(points)]


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Indices of the rows of (n, objectives) that no other row beats (all to be minimised); equal rows count once.

    Sorted by the second column, then the first.
    """
    _, index = np.unique(points, axis=0, return_index=True)
    rest = index[np.lexsort(tuple(points[index, column] for column in range(points.shape[1])))]
    kept: list[int] = []
    # In lexicographic order nothing that comes later can beat what came before.
    front = np.empty((0, points.shape[1]))
    for place in rest:
        if not len(front) or not np.any(np.all(front <= points[place], axis=1)):
            kept.append(int(place))
            front = np.vstack([front, points[place]])
    chosen = np.array(kept, dtype=np.int64)
    second = points[chosen, 1] if points.shape[1] > 1 else points[chosen, 0]
    return chosen[np.lexsort((points[chosen, 0], second))]

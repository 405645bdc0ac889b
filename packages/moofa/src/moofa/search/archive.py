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
        # Arrays with room to grow: a search asks for all scores after each generation.
        self._store: dict[str, np.ndarray] = {}

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
            found = costs.take(fresh) if costs is not None else self.table.costs(new)
            parts = {name: getattr(found, name) for name in found.__dataclass_fields__}
            self._append({"rows": new, "scores": np.asarray(self.score(new), dtype=np.float64), **parts}, len(self._index) - len(fresh))
        return places

    def _append(self, parts: dict[str, np.ndarray], start: int) -> None:
        for name, values in parts.items():
            end = start + len(values)
            store = self._store.get(name)
            if store is None or end > len(store):
                larger = np.empty((max(2 * end, 1024), *values.shape[1:]), dtype=values.dtype)
                if store is not None:
                    larger[:start] = store[:start]
                self._store[name] = larger
            self._store[name][start:end] = values

    @property
    def rows(self) -> np.ndarray:
        """All rows, in the order in which they came."""
        return self._store["rows"][: len(self)]

    @property
    def scores(self) -> np.ndarray:
        """Their scores, (n,)."""
        return self._store["scores"][: len(self)]

    @property
    def costs(self) -> Costs:
        """Their costs."""
        return Costs(**{name: self._store[name][: len(self)] for name in Costs.__dataclass_fields__})

    def best(self, budget: Budget) -> Found | None:
        """The network of the highest score within the budget.

        Of equal ones the one that uses most of a RAM budget (least RAM where RAM is not limited), then the one of fewest MACs.
        """
        allowed = np.flatnonzero(budget.allows(self.costs))
        if not len(allowed):
            return None
        costs = self.costs.take(allowed)
        order = np.lexsort((costs.macs, costs.ram if budget.ram is None else -costs.ram, -self.scores[allowed]))
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

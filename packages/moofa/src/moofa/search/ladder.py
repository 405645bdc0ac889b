"""The search that a budget gets: evolution on a ladder of budgets, so that a larger budget is never answered worse.

A single evolution at the budget asked for may be lucky at a small budget and not at a larger one. Here the rungs of the ladder
depend on the space and the target only. A budget is answered with the best network within it among all that were
looked at on the rungs up to it; a larger budget sees all of those and more. The evolution of a rung begins with the
last populations of the rungs just below, and depends on nothing else.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from edge_shared.errors import InputError

from moofa.budget import Budget
from moofa.costs import CostTable
from moofa.search.archive import Archive, Found, Score
from moofa.search.evolution import Evolution, evolve, require_feasible

RUNGS = {1: 48, 2: 8, 3: 4, 4: 3}
"""Rungs per limit, by the number of limits set."""
RUNG = Evolution(population=100, generations=12, resolution_mutation=0.2)
"""Evolution on one rung; it starts from the rungs below, so that few generations do."""
EXHAUSTIVE_LIMIT = 100_000
"""Spaces up to this size are searched whole by method ``auto``."""

Method = Literal["auto", "evolution", "exhaustive"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        budget: the limits.
        found: the best network within them.
        utilisation: its RAM over the RAM budget; None without one.
        method: exhaustive or evolution.
        evaluated: different networks that were scored.
        seconds: wall-clock time.
        archive: all of them.
    """

    budget: Budget
    found: Found
    utilisation: float | None
    method: str
    evaluated: int
    seconds: float
    archive: Archive = field(repr=False)


def search(
    table: CostTable,
    score: Score,
    budget: Budget,
    *,
    settings: Evolution | None = None,
    method: Method = "auto",
    seed: int = 0,
    archive: Archive | None = None,
) -> SearchResult:
    """Find the network with the highest score within a budget.

    With equal space, target, settings, seed and kinds of limits, a larger budget never gives a lower score.

    Args:
        table: costs of the space on the target.
        score: predicted accuracy of gene rows.
        budget: the limits; none set means the best network of all.
        settings: of the evolution on each rung; `RUNG` if omitted.
        method: ``auto`` tries every network of a space of up to 100,000.
        seed: of the evolution.
        archive: of earlier searches with the same table and score; what it holds counts too.

    Raises:
        Infeasible: at once, if no network is within the budget.
        InputError: for an exhaustive search of a space that is too large.
    """
    started = time.perf_counter()
    require_feasible(table, budget)
    if archive is None:
        archive = Archive(table, score)
    if method == "auto":
        method = "exhaustive" if table.space.size <= EXHAUSTIVE_LIMIT else "evolution"
    if method == "exhaustive":
        archive.add(table.genes.enumerate())
    elif method == "evolution":
        climb(archive, budget, settings or RUNG, seed)
    else:
        raise InputError(f"unknown method {method!r}; known: auto, evolution, exhaustive")
    found = archive.best(budget)
    assert found is not None  # the smallest network is in every population
    utilisation = found.costs["ram"] / budget.ram if budget.ram else None
    return SearchResult(budget, found, utilisation, method, len(archive), time.perf_counter() - started, archive)


def climb(archive: Archive, budget: Budget, settings: Evolution, seed: int) -> None:
    """Run the evolution on every rung that the budget reaches."""
    limits = budget.limits
    ladders = rungs(archive.table, tuple(limits))
    # Up to and with the first rung at or above the limit; beyond the last rung there is nothing more to find.
    reach = [min(int(np.searchsorted(ladders[name], value)), len(ladders[name]) - 1) + 1 for name, value in limits.items()]
    last: dict[tuple[int, ...], np.ndarray] = {}
    for cell in itertools.product(*(range(count) for count in reach)):
        below = [last[before] for axis in range(len(cell)) if (before := _step_down(cell, axis)) in last]
        rung = Budget(**{name: ladders[name][index].item() for name, index in zip(limits, cell, strict=True)})
        rng = np.random.default_rng([seed, len(limits), *cell])
        # A quarter of the population comes from below, the rest is new: otherwise a rung would stay near what the last one found.
        share = settings.population // (4 * max(len(below), 1))
        parents = np.vstack([rows[:share] for rows in below]) if below else None
        last[cell] = evolve(archive, rung, settings, rng, parents)


def _step_down(cell: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(index - (place == axis) for place, index in enumerate(cell))


def rungs(table: CostTable, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The ladder of each named limit: rising values that networks of the space really have, smallest and largest included."""
    genes = table.genes
    ends = genes.encode([table.space.smallest(), table.space.largest()])
    rows = np.vstack([ends, genes.sample(4096, np.random.default_rng(0))])
    costs = table.costs(rows)
    result = {}
    for name in names:
        values = np.unique(getattr(costs, name))
        count = RUNGS.get(len(names), 3)
        if len(values) > count:
            wanted = np.geomspace(values[0], values[-1], count)
            values = np.unique(values[np.minimum(np.searchsorted(values, wanted), len(values) - 1)])
        result[name] = values
    return result

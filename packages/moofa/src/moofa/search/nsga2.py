"""Many goals at once: NSGA-II (Deb et al. 2002) from pymoo, over score, RAM, flash, MACs and latency."""

from __future__ import annotations

from typing import Any

import numpy as np
from edge_shared.errors import InputError

from moofa.budget import LIMITS, Budget
from moofa.search.archive import Archive, Found
from moofa.search.evolution import require_feasible


def nsga2(
    archive: Archive,
    *,
    names: tuple[str, ...] = ("ram", "macs"),
    budget: Budget | None = None,
    population: int = 100,
    generations: int = 40,
    seed: int = 0,
) -> list[Found]:
    """The networks that no other beats in score and the named costs.

    Every network that was looked at counts, the last generation and earlier searches in the same archive included.

    Args:
        archive: evaluates and remembers.
        names: costs to keep low: ram, flash, macs, latency_ms.
        budget: limits on top; networks over them do not appear in the result.
        population: networks per generation.
        generations: rounds.
        seed: of the evolution.

    Raises:
        Infeasible: if no network is within the budget.
        InputError: for an unknown cost, or latency without a latency table.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.optimize import minimize

    if unknown := set(names) - set(LIMITS):
        raise InputError(f"unknown cost {min(unknown)!r}; known: {', '.join(LIMITS)}")
    budget = budget or Budget()
    table = archive.table
    if "latency_ms" in names and not table.has_latency:
        raise InputError("a front over latency needs a latency table; make one with `moofa latency`")
    require_feasible(table, budget)
    limits = budget.limits

    class Networks(Problem):
        def __init__(self) -> None:
            super().__init__(
                n_var=len(table.genes.sizes), n_obj=1 + len(names), n_ieq_constr=len(limits), xl=0, xu=table.genes.sizes - 1, vtype=int
            )

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            places = archive.add(table.genes.canonical(x))
            costs = archive.costs.take(places)
            out["F"] = np.column_stack([-archive.scores[places], *(getattr(costs, name) for name in names)])
            if limits:
                out["G"] = np.column_stack([getattr(costs, name) / limit - 1 for name, limit in limits.items()])

    class Canonical(Repair):
        """Entries of missing blocks to 0, so that equal networks are equal rows and pymoo drops the second."""

        def _do(self, problem: Any, X: np.ndarray, **kwargs: Any) -> np.ndarray:
            return table.genes.canonical(X)

    rng = np.random.default_rng(seed)
    ends = table.genes.encode([table.space.smallest(), table.space.largest()])
    begin = np.vstack([ends, table.genes.sample(population - 2, rng)])
    algorithm = NSGA2(
        pop_size=population,
        sampling=begin,
        crossover=UniformCrossover(),
        mutation=_redraw(table.genes.sizes),
        repair=Canonical(),
        eliminate_duplicates=True,
    )
    minimize(Networks(), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return archive.front(names, budget)


def _redraw(sizes: np.ndarray) -> Any:
    from pymoo.core.mutation import Mutation

    class Redraw(Mutation):
        """Each entry drawn anew with probability 0.1, the resolution (entry 0) with 0.5."""

        def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
            rng = random_state if random_state is not None else np.random.default_rng()
            probability = np.full(X.shape[1], 0.1)
            probability[0] = 0.5
            drawn = np.floor(rng.random(X.shape) * sizes).astype(X.dtype)
            return np.where(rng.random(X.shape) < probability, drawn, X)

    return Redraw(prob=1.0)

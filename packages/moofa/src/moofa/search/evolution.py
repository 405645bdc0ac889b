"""Constrained evolution: every network that it looks at is within the budget, and none is looked at twice in one run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from edge_shared.errors import InputError

from moofa.budget import Budget, Infeasible, in_words
from moofa.costs import Costs, CostTable
from moofa.search.archive import Archive

POLISH_ROUNDS = 20


@dataclass(frozen=True)
class Evolution:
    """Settings; population, parents, mutation and their probabilities are Once-For-All's (Cai et al. 2020).

    Attributes:
        population: networks per generation.
        generations: rounds of selection; children of the last one count like all others.
        parent_ratio: share of the population that has children.
        mutation_ratio: share of the children made by mutation; the others by crossover.
        mutation: probability with which an entry (kernel, expand, depth) is drawn anew.
        resolution_mutation: probability with which the resolution is.
    """

    population: int = 100
    generations: int = 20
    parent_ratio: float = 0.25
    mutation_ratio: float = 0.5
    mutation: float = 0.1
    resolution_mutation: float = 0.5

    def __post_init__(self) -> None:
        if self.population < 4 or self.generations < 1:
            raise InputError(f"population {self.population} and generations {self.generations} must be at least 4 and 1")
        for name in ("parent_ratio", "mutation_ratio", "mutation", "resolution_mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)} is out of range 0 to 1")


def require_feasible(table: CostTable, budget: Budget) -> None:
    """Return if some network is within the budget.

    The network with the smallest option everywhere needs least of everything, so that one look settles it.

    Raises:
        Infeasible: with what the smallest network needs.
        InputError: for a limit on latency without a latency table.
    """
    if budget.latency_ms is not None and not table.has_latency:
        raise InputError("a limit on latency needs a latency table; make one with `moofa latency`")
    row = table.genes.encode([table.space.smallest()])
    costs = table.costs(row)
    if budget.allows(costs)[0]:
        return
    smallest = {name: getattr(costs, name)[0].item() for name in budget.limits}
    needs = ", ".join(in_words(name, value) for name, value in smallest.items())
    raise Infeasible(
        f"no network of space {table.space.name} is within {budget.describe()}: the smallest needs {needs}; "
        "raise the budget or design a smaller space (moofa design)",
        smallest,
    )


def evolve(
    archive: Archive, budget: Budget, settings: Evolution, rng: np.random.Generator, parents: np.ndarray | None = None
) -> np.ndarray:
    """Search for the highest score within one budget; what is found lands in the archive.

    The networks that are looked at depend on the arguments only, not on what the archive holds already.

    Args:
        archive: evaluates and remembers.
        budget: limits that every network meets.
        settings: of the evolution.
        rng: the source of chance.
        parents: rows to begin with, (n, columns); those over the budget are dropped.

    Returns:
        The last population, best first: (population, columns).

    Raises:
        Infeasible: if no network is within the budget.
    """
    require_feasible(archive.table, budget)
    seen: set[bytes] = set()
    keep = max(2, round(settings.population * settings.parent_ratio))
    population = _fresh(_beginning(archive.table, budget, settings.population, rng, parents), seen)
    scores = _scores(archive, population)
    for _ in range(settings.generations):
        order = np.argsort(-scores, kind="stable")
        population, scores = population[order], scores[order]
        elite = population[:keep]
        children = _fresh(_children(archive.table, budget, elite, settings, rng), seen, settings.population - len(elite))
        if not len(children):
            continue
        population = np.vstack([elite, children])
        scores = np.concatenate([scores[: len(elite)], _scores(archive, children)])
    return _polish(archive, budget, population, scores, keep, seen)


def _polish(archive: Archive, budget: Budget, population: np.ndarray, scores: np.ndarray, keep: int, seen: set[bytes]) -> np.ndarray:
    """Try every single change of the best networks, again as long as the best one gets better (at most `POLISH_ROUNDS` times).

    Where RAM is limited, more of it at the same score is better too.
    """

    def sort(population: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
        ram = archive.table.costs(population).ram if budget.ram is not None else np.zeros(len(population))
        order = np.lexsort((-ram, -scores))  # stable
        return population[order], scores[order], (float(scores[order[0]]), float(ram[order[0]]))

    population, scores, best = sort(population, scores)
    for _ in range(POLISH_ROUNDS):
        neighbours = np.vstack([_neighbours(archive.table, row) for row in population[:keep]])
        neighbours = _fresh(_within(archive.table, budget, neighbours), seen)
        if not len(neighbours):
            break
        before = best
        scores = np.concatenate([scores, _scores(archive, neighbours)])
        population, scores, best = sort(np.vstack([population, neighbours]), scores)
        if best <= before:
            break
    return population


def _neighbours(table: CostTable, row: np.ndarray) -> np.ndarray:
    genes = table.genes
    columns = np.repeat(np.arange(len(genes.sizes)), genes.sizes)
    values = np.concatenate([np.arange(size) for size in genes.sizes])
    kept = genes.active(row[None])[0][columns] & (values != row[columns])
    if not kept.any():
        return row[None]
    changed = np.repeat(row[None], kept.sum(), axis=0)
    changed[np.arange(len(changed)), columns[kept]] = values[kept]
    return genes.canonical(changed)


def _scores(archive: Archive, rows: np.ndarray) -> np.ndarray:
    places = archive.add(rows)
    return archive.scores[places]


def _fresh(rows: np.ndarray, seen: set[bytes], limit: int | None = None) -> np.ndarray:
    """The first `limit` rows that were not seen yet; they are from now on."""
    keep: list[int] = []
    for number, row in enumerate(np.ascontiguousarray(rows, dtype=np.int16)):
        if len(keep) == limit:
            break
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            keep.append(number)
    return rows[keep]


def _within(table: CostTable, budget: Budget, rows: np.ndarray) -> np.ndarray:
    costs: Costs = table.costs(rows)
    return rows[budget.allows(costs)]


def _beginning(table: CostTable, budget: Budget, size: int, rng: np.random.Generator, parents: np.ndarray | None) -> np.ndarray:
    """Networks within the budget: the given ones, the smallest, random ones, and random ones pulled towards the smallest."""
    genes = table.genes
    smallest = genes.encode([table.space.smallest()])
    given = smallest if parents is None else np.vstack([_within(table, budget, parents), smallest])
    drawn = genes.sample(8 * size, rng)
    # A tight budget leaves few random networks: from each, entries are set to the smallest option with rising probability.
    pull = np.linspace(0, 1, len(drawn))[:, None]
    drawn = genes.canonical(np.where(rng.random(drawn.shape) < pull, 0, drawn))
    inside = _within(table, budget, drawn)
    inside = inside[rng.permutation(len(inside))]
    return np.vstack([given, inside[:size]])[: max(size, len(given))]


def _children(table: CostTable, budget: Budget, parents: np.ndarray, settings: Evolution, rng: np.random.Generator) -> np.ndarray:
    genes, size = table.genes, settings.population
    count = 6 * size
    mutants = round(count * settings.mutation_ratio)
    first = parents[rng.integers(len(parents), size=count)]
    second = parents[rng.integers(len(parents), size=count)]
    probability = np.full(parents.shape[1], settings.mutation)
    probability[0] = settings.resolution_mutation
    change = rng.random(first.shape) < probability
    # At least one entry changes: a copy of the parent would only be thrown away.
    change[np.arange(count), rng.integers(parents.shape[1], size=count)] = True
    drawn = (rng.random(first.shape) * genes.sizes).astype(np.int16)
    mutated = np.where(change, drawn, first)
    crossed = np.where(rng.random(first.shape) < 0.5, first, second)
    rows = np.where(np.arange(count)[:, None] < mutants, mutated, crossed)
    rows = _within(table, budget, genes.canonical(rows))
    return rows[rng.permutation(len(rows))]

"""Searches over a space: evolution on a ladder of budgets, exhaustive, NSGA-II; all share one archive."""

from moofa.search.archive import Archive, Found
from moofa.search.evolution import Evolution, evolve, require_feasible
from moofa.search.ladder import SearchResult, search
from moofa.search.nsga2 import nsga2

__all__ = ["Archive", "Evolution", "Found", "SearchResult", "evolve", "nsga2", "require_feasible", "search"]

"""A grid of methods, budgets and seeds through the shared sweep; means with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_shared.errors import CheckFailed, InputError
from edge_shared.sweep import run_grid

from ondevice_train.fit import FitConfig, run
from ondevice_train.methods import method
from ondevice_train.selection.table import NAMES, selector_class


def cell(**settings: Any) -> dict[str, Any]:
    """One run of a grid, its accuracy and cost as plain data."""
    result = run(FitConfig(**settings), verbose=False)
    keep = ("measured_saved_bytes", "predicted_saved_bytes", "measured_total_bytes", "step_seconds", "trained_parameters")
    return {**result.metrics, **{name: result.cost.get(name) for name in keep}}


def takes_budget(name: str) -> bool:
    """Whether a method keeps a budget at all (the others run once per seed)."""
    return selector_class(name).has_budget or name in ("sparse-update", "last-k") if name in NAMES else method(name).family == "compression"


def compare(
    methods: Sequence[str],
    budgets: Sequence[str],
    seeds: int,
    settings: Mapping[str, Any],
    *,
    out: str | Path | None = None,
    backend: str = "joblib",
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Run every method at every budget with every seed; finished cells in `out` are kept.

    Args:
        methods: names of `methods.METHODS`; those without a budget run once per seed.
        budgets: as `Budget.parse` takes them.
        seeds: how many seeds, from 0.
        settings: further fields of `FitConfig`.
        out: folder of the cells.
        backend, workers: see `edge_shared.sweep.run_grid`.

    Returns:
        One row per method and budget: mean accuracy, half width of its 95 % interval (Student's t over seeds; None for one seed),
        accuracies by seed, largest measured bytes, median step time.

    Raises:
        InputError: unknown method, or no seed.
        CheckFailed: if every cell of a row failed.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: at least 1")
    grid = []
    for name in methods:
        method(name)
        for budget in budgets if takes_budget(name) else [None]:
            grid += [{**settings, "method": name, "budget": budget, "seed": seed} for seed in range(seeds)]
    outcomes = run_grid(cell, grid, out=out, backend=backend, workers=workers)  # type: ignore[arg-type]
    rows: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    errors: dict[tuple[str, str | None], str] = {}
    for outcome in outcomes:
        key = (outcome["parameters"]["method"], outcome["parameters"]["budget"])
        rows.setdefault(key, [])
        if "result" in outcome:
            rows[key].append(outcome["result"])
        else:
            errors[key] = outcome["error"]
    for key, results in rows.items():
        if not results:
            raise CheckFailed(f"{key[0]} at {key[1]} failed for every seed: {errors[key]}")
    return [_row(name, budget, results) for (name, budget), results in rows.items()]


def _row(name: str, budget: str | None, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracies = [result["test_accuracy"] for result in results]
    times = [result["step_seconds"] for result in results if result["step_seconds"] is not None]
    return {
        "method": name,
        "budget": budget,
        "seeds": len(results),
        "mean_accuracy": statistics.fmean(accuracies),
        "ci95": half_width(accuracies),
        "accuracies": accuracies,
        "measured_saved_bytes": max(result["measured_saved_bytes"] for result in results),
        "measured_total_bytes": max(result["measured_total_bytes"] for result in results),
        "step_seconds": statistics.median(times) if times else None,
    }


def half_width(values: Sequence[float]) -> float | None:
    """Half width of the 95 % confidence interval of the mean (Student's t); None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))

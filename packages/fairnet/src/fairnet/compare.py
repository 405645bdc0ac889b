"""Methods side by side: the same data, network, recipe and seeds; paired differences to vanilla with t intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_shared.sweep import run_grid

METRICS = ("unbiased", "aligned", "conflicting", "worst_class", "probe")


def cell(method: str, data: str, rho: float, images: int, seed: int, epochs: int, model: str) -> dict[str, Any]:
    """One run of the grid: train and score, nothing kept but numbers."""
    import time

    from fairnet.debias import load
    from fairnet.methods import method as find
    from fairnet.methods._train import Settings
    from fairnet.score import score

    start = time.perf_counter()
    loaded = load(data, rho=rho, images=images, seed=seed, size=None)
    outcome = find(method)(loaded, Settings(model=model, epochs=epochs, seed=seed), None)
    result, _ = score(outcome.model, loaded)
    kept = {key: value for key, value in outcome.details.items() if key not in ("moments", "history", "rho")}
    return {**asdict(result), "details": kept, "seconds": time.perf_counter() - start}


@dataclass(frozen=True)
class Paired:
    """Mean of a metric over seeds, and the paired difference to vanilla with its interval."""

    mean: float
    difference: float | None
    low: float | None
    high: float | None


def paired(values: Sequence[float], reference: Sequence[float] | None, confidence: float = 0.95) -> Paired:
    """Student's t interval of paired differences; none below two pairs."""
    if reference is None:
        return Paired(statistics.fmean(values), None, None, None)
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Paired(statistics.fmean(values), mean, None, None)
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return Paired(statistics.fmean(values), mean, mean - half, mean + half)


def compare(
    data: str, methods: Sequence[str], rhos: Sequence[float], seeds: Sequence[int], *, images: int, epochs: int, model: str, out: Path
) -> dict[str, Any]:
    """Run the grid (resumable, one file a cell in OUT/cells) and summarise it.

    Returns:
        ``cells``: every run; ``summary``: rho -> method -> metric -> mean, paired difference and interval.
    """
    names = list(dict.fromkeys(["vanilla", *methods]))
    grid = [
        {"method": name, "data": data, "rho": rho, "images": images, "seed": seed, "epochs": epochs, "model": model}
        for rho in rhos
        for seed in seeds
        for name in names
    ]
    cells = run_grid(cell, grid, out=out)
    summary: dict[str, Any] = {}
    for rho in rhos:
        found = {
            name: [c["result"] for c in cells if "result" in c and c["parameters"]["rho"] == rho and c["parameters"]["method"] == name]
            for name in names
        }
        summary[f"{rho:g}"] = {
            name: {
                metric: asdict(
                    paired(
                        [run[metric] for run in runs],
                        None if name == "vanilla" or len(runs) != len(found["vanilla"]) else [run[metric] for run in found["vanilla"]],
                    )
                )
                for metric in METRICS
                if runs and all(run[metric] is not None for run in runs)
            }
            for name, runs in found.items()
        }
    return {"cells": cells, "summary": summary}

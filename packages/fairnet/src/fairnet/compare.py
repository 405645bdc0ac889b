"""Methods side by side: the same data, network, recipe and seeds; paired differences to vanilla with t intervals."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from edge_shared.sweep import run_grid

METRICS = ("unbiased", "aligned", "conflicting", "worst_class", "probe")
_KEEP_OUT = ("moments", "history", "rho", "schedule")  # series, for plots of one run


def cell(method: str, source: dict[str, Any], seed: int, settings: dict[str, Any], masks: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One run of the grid: train and score, nothing kept but numbers.

    Trainings lie in a folder that all methods of the same data, network and seed share: the vanilla network that FFW, DFR and the
    control masks start from is trained once.
    """
    from fairnet.methods import apply
    from fairnet.methods._train import Settings
    from fairnet.score import score

    key = json.dumps([source, seed, settings], sort_keys=True)
    shared = folder / "networks" / hashlib.sha256(key.encode()).hexdigest()[:12]
    shared.mkdir(parents=True, exist_ok=True)
    data = _data(json.dumps(source, sort_keys=True), seed)
    outcome = apply(method, data, Settings(**settings, seed=seed), shared, **masks)
    result, _ = score(outcome.model, data)
    parameters = sum(int((parameter != 0).sum()) for parameter in outcome.model.parameters())
    kept = {name: value for name, value in outcome.details.items() if name not in _KEEP_OUT}
    return {**asdict(result), "nonzero_parameters": parameters, "details": kept}


@lru_cache(maxsize=1)
def _data(source: str, seed: int) -> Any:
    from fairnet.data.choose import load

    return load(**json.loads(source), seed=seed)


@dataclass(frozen=True)
class Paired:
    """Mean of a metric over seeds, and the paired difference to a reference with its interval."""

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
    source: Mapping[str, Any],
    methods: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    *,
    settings: Mapping[str, Any],
    out: Path,
    granularity: str | None = None,
    gamma: float = 1.0,
    min_depth: float | None = None,
) -> dict[str, Any]:
    """Run the grid (resumable, one file a cell in OUT/cells) and summarise it.

    Args:
        source: arguments of `fairnet.data.choose.load`, without rho and seed.
        methods: names; vanilla is added in front.
        rhos: shares of aligned training images.
        seeds: one run each; the seed draws images, colours, weights and order.
        settings: fields of `Settings`, without the seed.
        out: folder.
        granularity, gamma: of masks.
        min_depth: of the search for a shortcut without labels.

    Returns:
        ``cells``: every run; ``summary``: rho -> method -> metric -> mean, paired difference to vanilla and interval;
        ``failed``: the cells that ended in an error, with it.
    """
    names = list(dict.fromkeys(["vanilla", *methods]))
    from fairnet.methods import MASKS, SEARCHES

    masks = {"granularity": granularity, "gamma": gamma}
    search = {} if min_depth is None else {"min_depth": min_depth}
    grid = [
        {
            "method": name,
            "source": {**source, "rho": rho},
            "seed": seed,
            "settings": dict(settings),
            "masks": (masks if name in MASKS else {}) | (search if name in SEARCHES else {}),
        }
        for rho in rhos
        for seed in seeds
        for name in names
    ]
    cells = run_grid(partial(cell, folder=out), grid, out=out)
    return {"cells": cells, "summary": summarise(cells), "failed": [c for c in cells if "error" in c]}


def write_report(folder: Path, found: Mapping[str, Any], command: str, settings: dict[str, Any], synthetic: bool) -> None:
    """result.json, report.html and a scatter for each share, beside the cells."""
    from edge_shared.report import DataInfo, Result, write_html, write_result

    from fairnet import plots

    sections = plots.compare_sections(folder, found["cells"], found["summary"])
    record = Result(
        command=command,
        metrics={"summary": found["summary"], "cells": found["cells"]},
        data=DataInfo(name=str(settings["data"]), synthetic=synthetic),
        settings=settings,
        notes=[f"{len(found['failed'])} runs failed: {found['failed'][0]['error']}"] if found["failed"] else [],
    )
    write_result(folder, record)
    write_html(folder, f"Methods side by side on {settings['data']}", sections, record)


def summarise(cells: Sequence[Mapping[str, Any]], reference: str = "vanilla") -> dict[str, Any]:
    """Means and paired differences to a reference method: rho -> method -> metric -> `Paired`.

    Seeds of which either run is missing are left out of the pair; `seeds` says how many there are.
    """
    runs: dict[str, dict[str, dict[int, Any]]] = {}
    for one in cells:
        if "result" in one:
            p = one["parameters"]
            runs.setdefault(f"{p['source']['rho']:g}", {}).setdefault(p["method"], {})[p["seed"]] = one["result"]
    summary: dict[str, Any] = {}
    for rho, methods in runs.items():
        base = methods.get(reference, {})
        summary[rho] = {}
        for name, found in methods.items():
            seeds = sorted(set(found) & set(base)) if name != reference and base else sorted(found)
            if not seeds:
                continue
            row: dict[str, Any] = {"seeds": len(seeds)}
            for metric in METRICS:
                values = [found[seed][metric] for seed in seeds]
                if all(value is not None for value in values):
                    row[metric] = asdict(paired(values, None if name == reference else [base[seed][metric] for seed in seeds]))
            summary[rho][name] = row
    return summary

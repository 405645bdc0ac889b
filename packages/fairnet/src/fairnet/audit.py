"""Per-group audit of predictions, numpy alone: accuracies, gaps and their bootstrap intervals.

Everything is a function of the contingency table counts[label, group, prediction], and so is the bootstrap: resampling rows is
a multinomial draw of that table. Metrics describe this file; they do not certify fairness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from fairnet.tables import read_csv

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile bootstrap interval; None where a cell that it needs is empty."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Group:
    """One cell: a label within a group (``label`` None: all labels of the group)."""

    label: str | None
    group: str
    n: int
    accuracy: Estimate


@dataclass(frozen=True)
class Audit:
    """What `audit` found.

    Attributes:
        n: rows counted.
        accuracy: share of right predictions.
        unbiased_accuracy: unweighted mean over the (label, group) cells.
        aligned_accuracy, conflicting_accuracy: over the cells where the group is, or is not, the one that goes with the label;
            None unless the pairs are known.
        worst_group: the cell of at least `min_group` rows with the lowest accuracy.
        accuracy_gap: best minus worst cell accuracy.
        demographic_parity_difference: largest difference between groups of the rate of a predicted class (one class against
            the rest; the largest over classes unless `positive` is given).
        equalized_odds_difference: largest difference between groups of true or false positive rate, likewise.
        cells: accuracy of every (label, group) cell, empty ones included with n = 0.
        groups: accuracy of every group.
        confidence: level of the intervals.
        min_group: cells with fewer rows are shown but do not count as worst.
    """

    n: int
    accuracy: Estimate
    unbiased_accuracy: Estimate
    aligned_accuracy: Estimate
    conflicting_accuracy: Estimate
    worst_group: Group
    accuracy_gap: Estimate
    demographic_parity_difference: Estimate
    equalized_odds_difference: Estimate
    cells: tuple[Group, ...]
    groups: tuple[Group, ...]
    confidence: float
    min_group: int


@dataclass(frozen=True)
class Predictions:
    """Rows of a table: label, prediction and group of each sample, as text."""

    label: tuple[str, ...]
    prediction: tuple[str, ...]
    group: tuple[str, ...]


def read_predictions(path: str | Path, label: str = "label", prediction: str = "prediction", group: str = "group") -> Predictions:
    """Read a CSV with a header.

    Args:
        path: the file.
        label, prediction: names of the columns.
        group: name of the group column; several, joined by commas, make their intersections the groups.

    Raises:
        InputError: a column that is missing, an empty cell (with its line), predictions of other classes than the labels' alone, or a
            file without rows.
    """
    names = [name.strip() for name in group.split(",")]
    table: list[tuple[str, str, str]] = []
    for line, row in read_csv(path, (label, prediction, *names), "predictions"):
        if not all(row[name] for name in (label, prediction, *names)):
            raise InputError(f"{path}:{line}: an empty cell in {label}, {prediction} or {group}")
        table.append((row[label], row[prediction], " / ".join(row[name] for name in names)))
    labels, predicted, groups = zip(*table, strict=True)
    if not set(labels) & set(predicted):
        said, known = ", ".join(sorted(set(predicted))[:5]), ", ".join(sorted(set(labels))[:5])
        raise InputError(f"{path}: no value of {prediction} ({said}) is a value of {label} ({known}); write the classes alike")
    return Predictions(labels, predicted, groups)


def audit(
    predictions: Predictions,
    *,
    aligned: Mapping[str, str | Sequence[str]] | None = None,
    positive: str | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    min_group: int = 1,
    seed: int = 0,
) -> Audit:
    """Audit predictions by group.

    Args:
        predictions: what `read_predictions` gives.
        aligned: which group (or groups) goes with each label, for aligned and conflicting accuracy; where labels and groups have the same
            names, each label goes with its own.
        positive: the class of parity and odds; the worst over all classes if omitted.
        confidence: level of the intervals.
        resamples: bootstrap draws; 0 for no intervals.
        min_group: smallest cell that can be the worst.
        seed: of the bootstrap.

    Raises:
        InputError: one class only, an unknown class or group, no cell large enough.
    """
    labels = sorted({*predictions.label, *predictions.prediction})
    if len(set(predictions.label)) < 2:
        raise InputError(f"all labels are {predictions.label[0]!r}; an audit needs two classes or more")
    groups = sorted(set(predictions.group))
    if positive is not None and positive not in labels:
        raise InputError(f"positive class {positive!r} does not occur; classes: {', '.join(labels)}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; it lies between 0 and 1")
    row = {name: index for index, name in enumerate(labels)}
    column = {name: index for index, name in enumerate(groups)}
    counts = np.zeros((len(labels), len(groups), len(labels)), dtype=np.int64)
    for y, g, p in zip(predictions.label, predictions.group, predictions.prediction, strict=True):
        counts[row[y], column[g], row[p]] += 1
    if aligned is None and set(groups) >= set(predictions.label):
        aligned = {name: name for name in set(predictions.label)}
    mask = np.zeros(counts.shape[:2], dtype=bool)
    for name, together in (aligned or {}).items():
        for group in (together,) if isinstance(together, str) else together:
            if name not in row or group not in column:
                raise InputError(f"aligned pair {name}={group}: classes are {', '.join(labels)}; groups are {', '.join(groups)}")
            mask[row[name], column[group]] = True
    large = counts.sum(2) >= max(min_group, 1)
    if not large.any():
        raise InputError(f"no (label, group) cell has {min_group} rows; the largest has {counts.sum(2).max()}")
    chosen = list(range(len(labels))) if positive is None else [row[positive]]
    draws = _resample(counts, resamples, seed)

    def estimate(metric: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Estimate:
        value = float(metric(counts[None].astype(float))[0])
        if not np.isfinite(value):
            return Estimate(None, None, None)
        if not resamples:
            return Estimate(value, None, None)
        sample = metric(draws)
        sample = sample[np.isfinite(sample)]
        low, high = np.quantile(sample, [(1 - confidence) / 2, (1 + confidence) / 2]) if sample.size else (np.nan, np.nan)
        return Estimate(value, float(low), float(high))

    cells = tuple(
        Group(y, g, int(counts[row[y], column[g]].sum()), estimate(partial(_cell_accuracy, label=row[y], group=column[g])))
        for y in labels
        if y in set(predictions.label)
        for g in groups
    )
    worst = min((cell for cell in cells if cell.n >= max(min_group, 1)), key=lambda cell: cell.accuracy.value or 0.0)
    return Audit(
        n=int(counts.sum()),
        accuracy=estimate(lambda c: np.einsum("bygy->b", c) / c.sum((1, 2, 3))),
        unbiased_accuracy=estimate(lambda c: np.nanmean(_cells(c).reshape(len(c), -1), axis=1)),
        aligned_accuracy=estimate(lambda c: _mean_over(c, mask)),
        conflicting_accuracy=estimate(lambda c: _mean_over(c, ~mask & mask.any(1, keepdims=True))),
        worst_group=worst,
        accuracy_gap=estimate(lambda c: np.nanmax(_cells(c)[:, large], axis=1) - np.nanmin(_cells(c)[:, large], axis=1)),
        demographic_parity_difference=estimate(lambda c: _parity(c, chosen)),
        equalized_odds_difference=estimate(lambda c: _odds(c, chosen)),
        cells=cells,
        groups=tuple(
            Group(
                None,
                g,
                int(counts[:, column[g]].sum()),
                estimate(partial(_group_accuracy, group=column[g])),
            )
            for g in groups
        ),
        confidence=confidence,
        min_group=min_group,
    )


def _resample(counts: Counts, resamples: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap tables: rows drawn with replacement within each (label, group) cell, whose sizes are the design of the test set."""
    random = np.random.default_rng(seed)
    draws = np.zeros((resamples, *counts.shape))
    for y, g in np.ndindex(counts.shape[:2]):
        n = counts[y, g].sum()
        if n and resamples:
            draws[:, y, g] = random.multinomial(n, counts[y, g] / n, size=resamples)
    return draws


def _cells(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Accuracy of each (label, group) cell; NaN where empty. counts (B, Y, G, Y) to (B, Y, G)."""
    total = counts.sum(3)
    right = np.einsum("bygy->byg", counts)
    return np.divide(right, total, out=np.full_like(total, np.nan), where=total > 0)


def _cell_accuracy(counts: NDArray[np.float64], label: int, group: int) -> NDArray[np.float64]:
    return _cells(counts)[:, label, group]


def _group_accuracy(counts: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    here = counts[:, :, group]
    return np.asarray(np.einsum("byy->b", here) / here.sum((1, 2)))


def _mean_over(counts: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    cells = _cells(counts)[:, mask]
    known = np.isfinite(cells)
    size = known.sum(1)
    return np.divide(np.where(known, cells, 0).sum(1), size, out=np.full(len(cells), np.nan), where=size > 0)


def _parity(counts: NDArray[np.float64], classes: list[int]) -> NDArray[np.float64]:
    """Selection rate per group: (B, G, Y) over the predicted class."""
    rate = counts.sum(1) / counts.sum((1, 3))[:, :, None]
    return (rate.max(1) - rate.min(1))[:, classes].max(1)


def _odds(counts: NDArray[np.float64], classes: list[int]) -> NDArray[np.float64]:
    worst = np.full(len(counts), np.nan)
    for c in classes:
        for truth in (counts[:, c], counts.sum(1) - counts[:, c]):  # samples of the class, and of all others: (B, G, Y)
            size = truth.sum(2)
            rate = np.divide(truth[:, :, c], size, out=np.full_like(size, np.nan), where=size > 0)
            known = np.isfinite(rate).any(1)
            gap = np.full(len(counts), np.nan)
            gap[known] = np.nanmax(rate[known], 1) - np.nanmin(rate[known], 1)
            worst = np.fmax(worst, gap)
    return worst

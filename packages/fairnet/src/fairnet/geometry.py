"""Voronoi cells of the latent space: how deep misclassified samples lie in the wrong cell (ICCV 2023, Eq. 1-4).

numpy alone; features are float64 inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_DEPTH = 0.25
"""Depth at the revealing moment from which misclassified samples are taken for followers of a shortcut. Ours; the paper always goes on.

Planted colours measured 0.35 and more at shares of 0.5 to 0.99 and 0.17 and less at 0.1 and 0.3 (MNIST and digits, two networks).
"""


def centroids(features_ND: NDArray[np.floating], labels_N: Ints, predictions_N: Ints, classes: int) -> Floats:
    """Mean feature of the correctly classified samples of each class (Eq. 1), all of them; NaN for a class that has none."""
    features = np.asarray(features_ND, dtype=np.float64)
    right = labels_N == predictions_N
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels_N[right], features[right])
    counts = np.bincount(labels_N[right], minlength=classes)
    with np.errstate(invalid="ignore"):
        return sums / np.where(counts, counts, np.nan)[:, None]


def boundary_distances(features_ND: NDArray[np.floating], labels_N: Ints, predictions_N: Ints, centres_TD: Floats) -> Floats:
    """Relative distance d* of each sample to the boundary between its predicted and its true class (Eq. 3 and 4).

    d = |(C_j - C_i)·a + (|C_i|² - |C_j|²)/2| / |C_j - C_i|, divided by the mean norm of the two centroids. 0 for samples
    classified right; NaN where a centroid is unknown or both coincide.
    """
    features = np.asarray(features_ND, dtype=np.float64)
    true, predicted = centres_TD[labels_N], centres_TD[predictions_N]
    difference = true - predicted
    norm = np.linalg.norm(difference, axis=1)
    offset = ((predicted**2).sum(1) - (true**2).sum(1)) / 2
    wrong = labels_N != predictions_N
    distance = np.zeros(len(features))
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = np.abs((difference * features).sum(1) + offset) / norm
        scale = (np.linalg.norm(true, axis=1) + np.linalg.norm(predicted, axis=1)) / 2
        distance[wrong] = (raw / scale)[wrong]
    distance[~np.isfinite(distance)] = np.nan
    return distance


@dataclass(frozen=True)
class Moment:
    """One measurement during training.

    Attributes:
        step: updates done.
        predictions: predicted class of every training sample.
        misclassified: how many are wrong.
        depth: their mean relative distance to the boundary; NaN if none is wrong.
    """

    step: int
    predictions: Ints
    misclassified: int
    depth: float


def measure(step: int, features_ND: NDArray[np.floating], labels_N: Ints, predictions_N: Ints, classes: int) -> Moment:
    """Measure one moment of training."""
    wrong = labels_N != predictions_N
    distances = boundary_distances(features_ND, labels_N, predictions_N, centroids(features_ND, labels_N, predictions_N, classes))[wrong]
    known = distances[np.isfinite(distances)]
    return Moment(step, predictions_N, int(wrong.sum()), float(known.mean()) if known.size else float("nan"))


def revealing_moment(moments: list[Moment], classes: int) -> int:
    """Index of the moment at which misclassified samples lie deepest in the wrong cell (Eq. 2); the first one of equals.

    The paper skips the first epoch, because at first a network is merely untrained. Here the search starts where fewer than half as
    many samples are misclassified as by chance, and their number settles: the next measurement still has three quarters.

    Raises:
        InputError: if no moment has a misclassified sample with known distance: nothing contradicts a shortcut.
    """
    wrong = [moment.misclassified for moment in moments]
    half = 0.5 * (1 - 1 / classes) * len(moments[0].predictions) if moments else 0.0
    settled = (index for index in range(len(wrong) - 1) if wrong[index] < half and wrong[index + 1] >= 0.75 * wrong[index])
    start = next(settled, max(len(wrong) - 1, 0))
    depths = np.array([moment.depth for moment in moments[start:]])
    if wrong and wrong[start] and not np.isfinite(depths).any():
        raise InputError(
            "the network has not learned: classes without one rightly classified sample have no centre; train longer (--epochs)"
        )
    if not np.isfinite(depths).any() or wrong[start] == 0:
        raise InputError(
            "no conflicting samples found: once trained, the network gets every training sample right, so nothing contradicts a shortcut"
        )
    return start + int(np.nanargmax(depths))


@dataclass(frozen=True)
class Alignment:
    """Which samples follow the shortcut.

    Attributes:
        pseudo_label: class that the biased network sees (its prediction at the revealing moment), per sample.
        aligned: whether that is the true class.
        rho: share of aligned samples per true class (Eq. 6).
    """

    pseudo_label: Ints
    aligned: NDArray[np.bool_]
    rho: Floats


def alignment(labels_N: Ints, predictions_N: Ints, classes: int) -> Alignment:
    """Alignment labels from the predictions at the revealing moment."""
    aligned = labels_N == predictions_N
    total = np.bincount(labels_N, minlength=classes)
    with np.errstate(invalid="ignore"):
        rho = np.bincount(labels_N[aligned], minlength=classes) / np.where(total, total, np.nan)
    return Alignment(predictions_N, aligned, rho)


def alignment_weights(found: Alignment, labels_N: Ints) -> Floats:
    """Weights that make aligned and conflicting samples of each class weigh the same (Eq. 5, rho by true class as in Eq. 6).

    In each class with both kinds, either kind sums to the size of the class. A class with one kind only keeps weight 1 for each
    sample: there is nothing to balance.
    """
    rho = found.rho[labels_N]
    weight = np.ones(len(labels_N))
    both = (rho > 0) & (rho < 1)
    weight[both] = np.where(found.aligned, 1 / np.where(both, rho, 1), 1 / np.where(both, 1 - rho, 1))[both]
    return weight


def balanced_grid_weights(aligned_N: NDArray[np.bool_], labels_N: Ints, classes: int) -> Floats:
    """Weights that give aligned and conflicting samples the mass they have where label and shortcut are independent; mean 1.

    With C classes and rho the share of aligned samples of a class: 1 / (C rho) for an aligned sample, (C - 1) / (C (1 - rho)) for a
    conflicting one (BISE). A class with one kind only keeps weight 1 for each sample.
    """
    found = alignment(labels_N, np.where(aligned_N, labels_N, -1), classes)
    rho = found.rho[labels_N]
    both = (rho > 0) & (rho < 1)
    weight = np.ones(len(labels_N))
    conflicting = (classes - 1) / (classes * np.where(both, 1 - rho, 1))
    weight[both] = np.where(aligned_N, 1 / (classes * np.where(both, rho, 1)), conflicting)[both]
    return weight


def group_weights(labels_N: Ints, groups_N: Ints) -> Floats:
    """Weights that make every present (label, group) cell weigh the same; mean 1."""
    _, cell, counts = np.unique(labels_N * (groups_N.max() + 1) + groups_N, return_inverse=True, return_counts=True)
    return len(labels_N) / (len(counts) * counts[cell].astype(np.float64))

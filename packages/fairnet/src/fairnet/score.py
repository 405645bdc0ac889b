"""Scores of a network on the test part: by cells, with the audit, and what a fresh probe still reads of the bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fairnet.audit import Audit, Predictions, audit
from fairnet.data.parts import BiasedSet
from fairnet.methods._train import predict
from fairnet.methods.ffw import probe_accuracy


@dataclass(frozen=True)
class Score:
    """Test accuracies in [0, 1].

    Attributes:
        accuracy: of all test images.
        unbiased: unweighted mean over the (label, group) cells.
        aligned, conflicting: over images whose group goes with their label, or does not; None where unknown.
        worst_class: lowest accuracy of a class on its conflicting images (of a class, where unknown).
        probe: how well a fresh linear probe reads the group from the bottleneck; 1 / groups is nothing.
    """

    accuracy: float
    unbiased: float
    aligned: float | None
    conflicting: float | None
    worst_class: float
    probe: float


def score(model: nn.Module, data: BiasedSet) -> tuple[Score, NDArray[np.int64]]:
    """Score a network, and its test predictions."""
    _, predictions = predict(model, data.test, data)
    y, b = data.test.y, data.test.b
    right = predictions == y
    cells = [right[(y == label) & (b == group)].mean() for label in np.unique(y) for group in np.unique(b[y == label])]
    paired = len(data.classes) == len(data.groups)
    conflicting = (b != y) if paired else np.ones(len(y), dtype=bool)
    return Score(
        accuracy=float(right.mean()),
        unbiased=float(np.mean(cells)),
        aligned=float(right[~conflicting].mean()) if paired and (~conflicting).any() else None,
        conflicting=float(right[conflicting].mean()) if paired and conflicting.any() else None,
        worst_class=min(float(right[conflicting & (y == label)].mean()) for label in np.unique(y[conflicting])),
        probe=probe_accuracy(model, data),
    ), predictions


def audit_of(predictions: NDArray[np.int64], data: BiasedSet, seed: int = 0) -> Audit:
    """The group audit of test predictions; with as many groups as classes, group i goes with class i."""
    y, b = data.test.y, data.test.b
    table = Predictions(
        tuple(data.classes[int(label)] for label in y),
        tuple(data.classes[int(label)] for label in predictions),
        tuple(data.groups[int(group)] for group in b),
    )
    present_classes, present_groups = set(table.label) | set(table.prediction), set(table.group)
    pairs = {
        label: group
        for label, group in zip(data.classes, data.groups, strict=False)
        if label in present_classes and group in present_groups
    }
    return audit(table, aligned=pairs if len(data.classes) == len(data.groups) else None, seed=seed)

"""Scores of a network on the test part: by cells, with the audit, and what a fresh probe still reads of the bias."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

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
        unbiased: unweighted mean over the (label, group) cells; with several attributes over the cells of `by_alignment`, as in
            Multi-Color MNIST.
        aligned, conflicting: over images of which every attribute goes with the label, or any does not; None where unknown.
        worst_class: lowest accuracy of a class on its conflicting images (of a class, where unknown).
        probe: how well a fresh linear probe reads the bias from the bottleneck (mean over attributes); 1 / values is nothing. None where
            groups are unknown.
        by_alignment: with several attributes, the accuracy of each combination, such as ``left+ right-``.
    """

    accuracy: float
    unbiased: float
    aligned: float | None
    conflicting: float | None
    worst_class: float
    probe: float | None
    by_alignment: dict[str, float] = field(default_factory=dict)


def score(model: nn.Module, data: BiasedSet) -> tuple[Score, NDArray[np.int64]]:
    """Score a network, and its test predictions."""
    features, predictions = predict(model, data.test, data)
    y, b = data.test.y, data.test.b
    right = predictions == y
    goes = data.alignment(data.test)
    conflicting = np.ones(len(y), dtype=bool) if goes is None else ~goes.all(0)
    hard = conflicting if conflicting.any() else ~conflicting
    by_alignment = {}
    if goes is not None and len(goes) > 1:
        for signs in itertools.product((True, False), repeat=len(goes)):
            here = (goes == np.array(signs)[:, None]).all(0)
            if here.any():
                name = " ".join(a.name + ("+" if sign else "-") for a, sign in zip(data.attributes, signs, strict=True))
                by_alignment[name] = float(right[here].mean())
    cells = list(by_alignment.values()) or [
        right[(y == label) & (b == group)].mean() for label in np.unique(y) for group in np.unique(b[y == label])
    ]
    return Score(
        accuracy=float(right.mean()),
        unbiased=float(np.mean(cells)),
        aligned=float(right[~conflicting].mean()) if goes is not None and (~conflicting).any() else None,
        conflicting=float(right[conflicting].mean()) if goes is not None and conflicting.any() else None,
        worst_class=min(float(right[hard & (y == label)].mean()) for label in np.unique(y[hard])),
        probe=probe_accuracy(model, data, features) if data.attributes else None,
        by_alignment=by_alignment,
    ), predictions


def audit_of(predictions: NDArray[np.int64], data: BiasedSet, seed: int = 0) -> Audit:
    """The group audit of test predictions; the pairs that go together are those of the data."""
    y, b = data.test.y, data.test.b
    table = Predictions(
        tuple(data.classes[int(label)] for label in y),
        tuple(data.classes[int(label)] for label in predictions),
        tuple(data.groups[int(group)] for group in b),
    )
    present_groups = set(table.group)
    pairs = {
        label: [group for group in groups if group in present_groups]
        for label, groups in data.aligned_pairs.items()
        if label in set(table.label)
    }
    return audit(table, aligned=pairs or None, seed=seed)

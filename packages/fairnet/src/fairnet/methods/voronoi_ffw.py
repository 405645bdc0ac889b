"""Voronoi labels for the surgeon: cut the shortcut out of the biased network without any bias label.

Ours. Voronoi's phase 1 gives the biased network and, for every training image, the class that the shortcut says. The mask is then
learned on the *biased* training images: cross-entropy with alignment weights, mutual information on conflicting images only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fairnet.data.parts import BiasedSet
from fairnet.geometry import alignment_weights
from fairnet.methods._train import Outcome, Settings
from fairnet.methods.ffw import FfwConfig, surgery
from fairnet.methods.voronoi import discover

ALIGNED_PER_CONFLICTING = 3
"""Aligned images kept for each conflicting one: the rest say nothing new and cost time."""


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: FfwConfig | None = None) -> Outcome:
    """Discover, then operate."""
    discovery = discover(data, settings, folder)
    found = discovery.found
    random = np.random.default_rng(settings.seed)
    conflicting = np.flatnonzero(~found.aligned)
    aligned = random.permutation(np.flatnonzero(found.aligned))[: max(ALIGNED_PER_CONFLICTING * len(conflicting), 200)]
    rows = np.sort(np.concatenate([conflicting, aligned]))
    labels = data.train.y[rows]
    share = np.bincount(labels[found.aligned[rows]], minlength=len(data.classes)) / np.maximum(
        np.bincount(labels, minlength=len(data.classes)), 1
    )
    part = data.train.take(rows)
    subset = type(found)(found.pseudo_label[rows], found.aligned[rows], share)
    outcome = surgery(
        discovery.model,
        data,
        part,
        subset.pseudo_label,
        alignment_weights(subset, part.y),
        ~subset.aligned,
        len(data.classes),
        settings,
        config or FfwConfig(),
    )
    outcome.details["discovery"] = discovery.quality(data) if len(data.groups) == len(data.classes) else None
    return outcome

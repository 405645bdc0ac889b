"""Voronoi labels for the surgeon: cut the shortcut out of the biased network without any bias label.

Ours. Voronoi's phase 1 says for every training and validation image which class the shortcut takes it for. The mask is learned on these
biased images: conflicting ones weigh as much as they would in a set where label and shortcut are independent, and the mutual
information is taken on them only.

A network trained to the end is right about its conflicting training images because it has learned them by heart, and a mask finds nothing
to mend in it. So the patient is the biased network at an earlier moment of the same training: after the last epoch at which half of
the conflicting images were still wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fairnet.data.parts import BiasedSet, Part
from fairnet.geometry import balanced_grid_weights
from fairnet.methods._train import Outcome, Settings, cross_entropy, fresh, train
from fairnet.methods.ffw import FfwConfig, cut, surgery
from fairnet.methods.voronoi import VoronoiConfig, discover

ALIGNED_PER_CONFLICTING = 3
"""Aligned training images for each conflicting one: the rest say nothing new and cost time."""


def run(
    data: BiasedSet, settings: Settings, folder: Path | None = None, config: FfwConfig | None = None, search: VoronoiConfig | None = None
) -> Outcome:
    """Discover, go back to the moment before the exceptions were learned by heart, operate; without a shortcut nothing is cut."""
    config = config or FfwConfig()
    discovery = discover(data, settings, folder, search)
    if not discovery.shortcut:
        return Outcome(discovery.model, discovery.details(data))
    epoch = discovery.unlearned_epoch(data.train.y, -(-len(data.train) // settings.batch_size))
    checkpoint = folder and folder / f"patient-{epoch}.safetensors"
    patient = fresh(data, settings)
    train(patient, data.train, data, settings, cross_entropy, checkpoint=checkpoint, stop_after=epoch, description="patient")
    random = np.random.default_rng(settings.seed)
    conflicting = np.flatnonzero(~discovery.found.aligned)
    aligned = random.permutation(np.flatnonzero(discovery.found.aligned))[: ALIGNED_PER_CONFLICTING * len(conflicting)]
    rows = np.sort(np.concatenate([conflicting, aligned]))
    some = data.train.take(rows)
    part = Part(np.concatenate([some.x, data.val.x]), np.concatenate([some.y, data.val.y]), np.concatenate([some.b, data.val.b]))
    follows = np.concatenate([discovery.found.aligned[rows], discovery.val.aligned])
    pseudo = np.concatenate([discovery.found.pseudo_label[rows], discovery.val.pseudo_label])
    classes = len(data.classes)
    weights = balanced_grid_weights(follows, part.y, classes)
    operation = surgery(patient, data, part, [(pseudo, classes)], weights, ~follows, settings, config)
    found = {
        "patient_epoch": epoch,
        "images_used": len(part),
        "conflicting_used": int((~follows).sum()),
    } | discovery.details(data)
    return cut(patient, operation.masks, config.granularity, {**operation.details, **found})

"""Reweighting by the true groups: every (label, group) cell weighs the same. An oracle: it knows the bias of each image."""

from __future__ import annotations

from pathlib import Path

from fairnet import networks
from fairnet.data.parts import BiasedSet
from fairnet.geometry import group_weights
from fairnet.methods._train import Outcome, Settings, train, weighted


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """Train with cell-balancing weights."""
    model = networks.make(settings.model, len(data.classes), settings.seed)
    loss = weighted(group_weights(data.train.y, data.train.b))
    return Outcome(
        train(model, data.train, data, settings, loss, checkpoint=folder and folder / "reweight.safetensors", description="reweight")
    )

"""Reweighting by the true groups: every (label, group) cell weighs the same. An oracle: it knows the bias of each image."""

from __future__ import annotations

from pathlib import Path

from fairnet.data.parts import BiasedSet
from fairnet.geometry import group_weights
from fairnet.methods._train import Outcome, Settings, fresh, train, weighted


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """Train with cell-balancing weights."""
    data.need_groups("reweight")
    model = fresh(data, settings)
    loss = weighted(group_weights(data.train.y, data.train.b))
    return Outcome(
        train(model, data.train, data, settings, loss, checkpoint=folder and folder / "reweight.safetensors", description="reweight")
    )

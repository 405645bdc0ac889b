"""Empirical risk minimisation: the biased network that everything is compared with."""

from __future__ import annotations

from pathlib import Path

from fairnet import networks
from fairnet.data.parts import BiasedSet
from fairnet.methods._train import Outcome, Settings, cross_entropy, train


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """Train on the biased part as if nothing were wrong."""
    model = networks.make(settings.model, len(data.classes), settings.seed)
    return Outcome(
        train(model, data.train, data, settings, cross_entropy, checkpoint=folder and folder / "vanilla.safetensors", description="vanilla")
    )

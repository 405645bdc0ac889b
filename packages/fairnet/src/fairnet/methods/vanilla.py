"""Empirical risk minimisation: the biased network that everything is compared with."""

from __future__ import annotations

from pathlib import Path

from fairnet.data.parts import BiasedSet
from fairnet.methods._train import Outcome, Settings, cross_entropy, fresh, train


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """Train on the biased part as if nothing were wrong."""
    model = fresh(data, settings)
    return Outcome(
        train(model, data.train, data, settings, cross_entropy, checkpoint=folder and folder / "vanilla.safetensors", description="vanilla")
    )

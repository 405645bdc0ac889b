"""Just train twice (Liu 2021): what a network of one epoch gets wrong weighs more in a second training. No group labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fairnet.data.parts import BiasedSet
from fairnet.methods._train import Outcome, Settings, cross_entropy, fresh, predict, train, weighted

UPWEIGHT = 20.0
"""Weight of a misclassified sample; the paper tunes it between 4 and 100."""


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """One epoch of identification, then training with the error set upweighted."""
    first = fresh(data, settings)
    train(
        first, data.train, data, settings, cross_entropy, epochs=1, checkpoint=folder and folder / "jtt-1.safetensors", description="JTT 1"
    )
    _, predictions = predict(first, data.train, data)
    wrong = predictions != data.train.y
    weights = np.where(wrong, UPWEIGHT, 1.0)
    model = fresh(data, settings)
    train(
        model,
        data.train,
        data,
        settings,
        weighted(weights / weights.mean()),
        checkpoint=folder and folder / "jtt-2.safetensors",
        description="JTT 2",
    )
    return Outcome(model, {"error_set": int(wrong.sum())})

"""Control of FFW: masks drawn at random, of FFW's sparsity in every layer, the best of many on the same balanced images."""

from __future__ import annotations

from pathlib import Path

import torch

from fairnet.data.parts import BiasedSet
from fairnet.methods._train import Outcome, Settings, predict
from fairnet.methods.ffw import FfwConfig, cut, operate

DRAWS = 20
"""Masks that are tried; FFW, too, picks its mask on the balanced images."""


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: FfwConfig | None = None) -> Outcome:
    """The vanilla network under the best of `DRAWS` random masks."""
    config = config or FfwConfig()
    model, operation = operate(data, settings, folder, config)
    generator = torch.Generator().manual_seed(settings.seed)
    best, found = -1.0, []
    for _ in range(DRAWS):
        masks = [keep_most(torch.rand(mask.shape, generator=generator), int(mask.sum())) for mask in operation.masks]
        candidate = cut(model, masks, config.granularity, {})
        accuracy = float((predict(candidate.model, data.balanced, data)[1] == data.balanced.y).mean())
        found.append(accuracy)
        if accuracy > best:
            best, outcome = accuracy, candidate
    outcome.details |= {"balanced_accuracy": best, "balanced_accuracy_mean": sum(found) / DRAWS, "draws": DRAWS}
    return outcome


def keep_most(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the `count` highest scores."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().topk(count).indices] = True
    return mask.reshape(scores.shape)

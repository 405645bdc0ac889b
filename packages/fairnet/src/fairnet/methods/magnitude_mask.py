"""Control of FFW: the smallest weights (or the channels with the smallest weights) go, FFW's number of them in every layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fairnet import networks
from fairnet.data.parts import BiasedSet
from fairnet.methods._train import Outcome, Settings
from fairnet.methods.ffw import FfwConfig, cut, operate, weighted_layers
from fairnet.methods.random_mask import keep_most


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: FfwConfig | None = None) -> Outcome:
    """The vanilla network under the magnitude mask."""
    config = config or FfwConfig()
    model, operation = operate(data, settings, folder, config)
    scores = magnitudes(model, config.granularity == "channels")
    masks = [keep_most(score.reshape(mask.shape), int(mask.sum())) for score, mask in zip(scores, operation.masks, strict=True)]
    return cut(model, masks, config.granularity, {})


def magnitudes(model: nn.Module, channels: bool) -> list[torch.Tensor]:
    """Absolute weights of every layer, or for each channel of the gated layers their sum."""
    if not channels:
        return [layer.weight.detach().abs() for layer in weighted_layers(model)]
    layers = [site.conv if isinstance(site, networks.Unit) else site.linear for site in networks.gate_sites(model)]
    return [layer.weight.detach().abs().flatten(1).sum(1) for layer in layers]

"""Running statistics of one network of a supernet, measured anew (the shared ones belong to no network in particular)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from moofa.space import Choice
from moofa.supernet.layers import ElasticNorm
from moofa.supernet.network import Supernet


@torch.no_grad()
def calibrate(supernet: Supernet, choice: Choice, batches: Iterable[Tensor]) -> None:
    """Set the norms' running statistics to those of `choice` on training images.

    Every norm averages the mean and the biased variance of each batch, weighted by its samples, while it normalises
    with the batch itself (Once-For-All's ``set_running_statistics``). Only the first entries, those of the active
    channels, are written; no weight changes.

    Args:
        supernet: changed in place.
        choice: the network.
        batches: image batches (B, C, H, W), from the training set.

    Raises:
        ValueError: if there is no batch.
    """
    norms = [module for module in supernet.modules() if isinstance(module, ElasticNorm)]
    training = supernet.training
    supernet.eval()
    try:
        for norm in norms:
            norm.observed = []
        count = 0
        for x_BCHW in batches:
            supernet(x_BCHW, choice)
            count += 1
        if count == 0:
            raise ValueError("calibration needs at least one batch of images")
        for norm in norms:
            if norm.observed:
                total = sum(samples for samples, _, _ in norm.observed)
                channels = len(norm.observed[0][1])
                norm.running_mean[:channels] = sum(samples / total * mean for samples, mean, _ in norm.observed)
                norm.running_var[:channels] = sum(samples / total * var for samples, _, var in norm.observed)
    finally:
        for norm in norms:
            norm.observed = None
        supernet.train(training)

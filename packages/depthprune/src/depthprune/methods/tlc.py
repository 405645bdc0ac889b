"""TLC: the till-the-layers-collapse method, from batch-norm statistics and trial removals (Liao et al., AAAI 2025)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from edge_shared.errors import InputError
from edge_shared.evaluating import evaluating
from torch import Tensor, nn
from torch.nn import functional as F

from depthprune.capture import Site, module_of
from depthprune.entropy import UPPER
from depthprune.methods.moments import measure, normal_cdf
from depthprune.methods.protocol import Method, State, lowest
from depthprune.surgery import remove


@dataclass
class Tlc(Method):
    """Treat each neuron by the sign of its mean (ON: linear, OFF: removed), rank layers by the loss of removing them alone.

    A ReLU6 has a third piece: a neuron whose mean is 6 or more becomes the constant 6. What is not made of straight pieces (GELU, SiLU)
    is taken for a ReLU all the same, as in the paper; what that costs is in the trial loss that ranks it.
    The mean is the batch norm's beta where a batch norm directly feeds the activation, else measured on the
    calibration batches (so an activation behind a skip addition never uses the branch's beta). Trials run on copies
    over all `held_out` batches. Where trials lower the loss, the longest prefix of the ranking that still does not raise it
    is removed (the authors' code also removes the layer that did raise it); else the best layers only.
    """

    name = "tlc"

    def score(self, state: State) -> dict[str, float]:
        """Loss with the layer removed alone minus loss now, in nats per image."""
        means = {site: mean for site, (mean, _) in neuron_statistics(state).items()}
        pieces = {site.name: piece_of(site, means[site.name]) for site in state.open_sites()}
        self._keep = {site: factor for site, (factor, _) in pieces.items()}
        self._constant = {site: constant for site, (_, constant) in pieces.items()}
        self._loss = mean_loss(state.model, state)
        return {site: self._trial(state, [site]) - self._loss for site in self._keep}

    def _trial(self, state: State, chosen: list[str]) -> float:
        model = copy.deepcopy(state.model)
        for site in chosen:
            remove(model, site, "sign", self._keep[site], self._constant[site])
        return mean_loss(model, state)

    def choose(self, state: State, scores: dict[str, float], count: int) -> list[str]:
        """The `count` best; where trials lower the loss, all further ones that together still do not raise it as well."""
        ranking = lowest(scores, len(scores))
        best = min(count, len(ranking))
        if not ranking or scores[ranking[0]] >= 0:
            return ranking[:best]
        for size in range(best + 1, len(ranking) + 1):
            if self._trial(state, ranking[:size]) > self._loss:
                break
            best = size
        return ranking[:best]

    def apply(self, state: State, chosen: list[str]) -> None:
        """OFF neurons become 0 for good (a fixed mask behind norm and bias), saturated ones 6, ON neurons linear."""
        for site in chosen:
            state.remove(site, "sign", self._keep[site], self._constant[site])


def piece_of(site: Site, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The straight piece of its activation that each neuron mostly lies on: factor and constant, (C,), float32."""
    factor, constant = (mean > 0).float(), torch.zeros(len(mean), device=mean.device)
    if site.kind == "relu6":
        saturated = mean >= UPPER["relu6"]
        factor[saturated], constant[saturated] = 0.0, UPPER["relu6"]
    return factor, constant


def error_likelihood(mean: Tensor, std: Tensor) -> Tensor:
    """E = Phi(-|mean| / |std|): probability that a neuron has the other sign if z is normal; 0 where std is 0."""
    ratio = mean.abs() / std.abs().clamp(min=torch.finfo(mean.dtype).tiny)
    return torch.where(std == 0, torch.zeros_like(mean), normal_cdf(-ratio))


def neuron_statistics(state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of z per neuron of each open site: from the batch norm in front, else measured."""
    result, to_measure = {}, []
    for site in state.open_sites():
        node = next(n for n in state.model.graph.nodes if n.meta.get("site") == site.name)
        norm = module_of(state.model, node.args[0])
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
            result[site.name] = (norm.bias.detach().double(), norm.weight.detach().abs().double())
        else:
            to_measure.append(site)
    if to_measure:
        moments = measure(state.model, state.calibration, to_measure)
        result |= {site: (m.mean, m.variance.sqrt()) for site, m in moments.items()}
    return {site.name: result[site.name] for site in state.open_sites()}


@torch.no_grad()
def mean_loss(model: nn.Module, state: State) -> float:
    """Mean cross-entropy over the held-out batches, in evaluation mode.

    Raises:
        InputError: if the batches have no labels.
    """
    total, images = 0.0, 0
    with evaluating(model):
        for batch in state.held_out:
            if not isinstance(batch, list | tuple) or len(batch) < 2:
                raise InputError("trial removals need labels: batches must be (inputs, labels)")
            x, y = batch[:2]
            total += float(F.cross_entropy(model(x), y, reduction="sum"))
            images += len(x)
    if not images:
        raise InputError("no held-out batch for trial removals")
    return total / images

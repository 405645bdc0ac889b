"""EGP: unstructured pruning guided by entropy, until whole layers are linear (Liao et al., ICCVW 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depthprune.entropy import Counts, Over, ZeroIs
from depthprune.methods import masks
from depthprune.methods.budget import check_fraction, shares, whole
from depthprune.methods.protocol import Method, State, lowest, sign_mask
from depthprune.surgery import producer


@dataclass
class Egp(Method):
    """Prune where irrelevance is low; remove the layers whose entropy reaches zero.

    Each round: layer entropy H_l, irrelevance I_l = H_l * mean |w|, budget ``zeta * non-zero weights`` shared by
    softmax of the relevance R_l, smallest magnitudes masked. A layer of entropy exactly 0 is removed by sign: ON neurons
    are linear, OFF neurons give 0, so the function on the calibration data stays the same.

    Attributes:
        zeta: share of the remaining weights to prune per round.
        over: mean of neuron entropies over ``all`` neurons, or the ``mixed`` ones only (what the authors' code does).
        zero_is: what z = 0 counts as.
        rewind: whether the weights left go back to their dense values before each fine-tuning.
    """

    zeta: float = 0.5
    over: Over = "all"
    zero_is: ZeroIs = "off"
    rewind: bool = False
    name = "egp"
    takes_pairs = False  # only a layer of entropy 0 is removed

    def __post_init__(self) -> None:
        check_fraction(self.zeta)
        self._dense: dict[str, Tensor] = {}
        self._entropies: dict[str, float] = {}

    def prepare(self, state: State) -> None:
        """Remember the dense weights if they are to be rewound to."""
        if self.rewind:
            self._dense = {name: p.detach().clone() for name, p in state.model.named_parameters()}

    def score(self, state: State) -> dict[str, float]:
        """Irrelevance I_l; 0 for layers of zero entropy."""
        self._counts = state.counts()
        self._entropies = {site: counts.layer_entropy(self.zero_is, self.over) for site, counts in self._counts.items()}
        return {site: self._irrelevance(state, site, H) for site, H in self._entropies.items()}

    def _irrelevance(self, state: State, site: str, H: float) -> float:
        name = weight_name(state, site)
        if name is None:
            return H
        weight = state.model.get_parameter(name).detach()
        alive = weight[weight != 0]
        return H * float(alive.abs().mean()) if alive.numel() else 0.0

    def choose(self, state: State, scores: dict[str, float], count: int) -> list[str]:
        """Every layer whose neurons all have a constant sign (or whose weights are all gone)."""
        return [site for site in lowest(scores, len(scores)) if linear_on_data(self._counts[site], self.zero_is)]

    def apply(self, state: State, chosen: list[str]) -> None:
        """Remove the chosen layers by sign, then prune the others within the budget."""
        for site in chosen:
            state.remove(site, "sign", sign_mask(self._counts[site]))
        weights = {site: weight_name(state, site) for site in self._entropies if site not in chosen}
        prunable = {site: name for site, name in weights.items() if name is not None}
        remaining = {site: int((state.model.get_parameter(name) != 0).sum()) for site, name in prunable.items()}
        irrelevance = {site: self._irrelevance(state, site, self._entropies[site]) for site in prunable}
        budget = self.zeta * sum(remaining.values())
        for site, amount in whole(shares(irrelevance, remaining, budget), remaining).items():
            if amount:
                name = prunable[site]
                parameter = state.model.get_parameter(name)
                before = state.masks.get(name, (parameter != 0).float())
                state.masks[name] = masks.prune_smallest(parameter, before, amount)
        if self._dense:
            with torch.no_grad():
                for name, value in self._dense.items():
                    state.model.get_parameter(name).copy_(value)
        masks.apply(state.model, state.masks)


def weight_name(state: State, site: str) -> str | None:
    """Name of the weight that directly feeds an activation, if it is one layer."""
    node, _ = producer(state.model, site)
    return None if node is None else f"{node.target}.weight"


def linear_on_data(counts: Counts, zero_is: ZeroIs) -> bool:
    """Whether every neuron has entropy exactly 0, and none enters an upper region (ReLU6)."""
    return float(counts.entropy(zero_is).max()) == 0.0 and not bool(counts.upper.any())

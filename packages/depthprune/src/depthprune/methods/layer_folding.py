"""Layer Folding: learn one slope per activation that turns it into the identity (Ben Dror et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthprune.entropy import target
from depthprune.methods.protocol import Method, State, lowest


class Fold(nn.Module):
    """``alpha*z + (1 - alpha)*phi(z)`` with one learned alpha, kept at or above 0."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x of any shape."""
        alpha = self.alpha.clamp(min=0)
        return alpha * x + (1 - alpha) * self.activation(x)


@dataclass
class LayerFolding(Method):
    """Slopes are learned with the penalty strength * |1 - alpha^2|; those that come nearest to 1 are folded.

    Attributes:
        strength: of the penalty.
        threshold: alpha from which a site counts as folded; the one nearest to it goes if none has reached it.
    """

    strength: float = 0.25
    threshold: float = 0.9
    name = "layer-folding"

    def prepare(self, state: State) -> None:
        """Put a slope beside every open activation; the first fine-tuning learns them."""
        for site in state.open_sites():
            path = target(state.model, site)
            parent, _, name = path.rpartition(".")
            owner = state.model.get_submodule(parent)
            setattr(owner, name, Fold(getattr(owner, name)).train(state.model.training))

    def penalty(self, state: State) -> Callable[[nn.Module], Tensor] | None:
        """strength * sum |1 - alpha^2| over the sites that are left."""

        def term(model: nn.Module) -> Tensor:
            values = [(1 - m.alpha**2).abs() for m in model.modules() if isinstance(m, Fold)]
            return self.strength * torch.stack(values).sum() if values else torch.zeros(())

        return term

    def score(self, state: State) -> dict[str, float]:
        """1 - alpha per site that is left."""
        return {name: 1.0 - float(fold.alpha.detach()) for name, fold in folds(state).items()}

    def choose(self, state: State, scores: dict[str, float], count: int) -> list[str]:
        """Up to `count` sites above the threshold, or the one that comes nearest."""
        ready = [site for site in lowest(scores, count) if 1.0 - scores[site] >= self.threshold]
        return ready or lowest(scores, 1)

    def apply(self, state: State, chosen: list[str]) -> None:
        """Identity at the chosen sites; the others keep their slopes."""
        for site in chosen:
            unfold(state, site)
            state.remove(site)


def folds(state: State) -> dict[str, Fold]:
    """The slopes that are left, by site."""
    found = {}
    for node in state.model.graph.nodes:
        name = node.meta.get("site")
        module = state.model.get_submodule(str(node.target)) if name is not None else None
        if isinstance(module, Fold) and (state.candidates is None or name in state.candidates):
            found[name] = module
    return found


def unfold(state: State, site: str) -> None:
    """Put the plain activation back at a site."""
    path = target(state.model, site)
    parent, _, name = path.rpartition(".")
    owner = state.model.get_submodule(parent)
    setattr(owner, name, getattr(owner, name).activation)

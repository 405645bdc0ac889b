"""Affine: replace an activation by the affine map nearest to it per neuron, the best-fitting layer first.

Ours. The residual variance of the fit says how much of a layer is really nonlinear, in units of its output; sign entropy does
not (a GELU of constant sign is still curved). Factors fold into the layer before, so they cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from depthprune.methods.moments import Moments, measure
from depthprune.methods.protocol import Method, State


@dataclass
class Affine(Method):
    """Lowest unexplained share of the output variance first, replaced by its least-squares affine map."""

    name = "affine"

    def score(self, state: State) -> dict[str, float]:
        """Residual variance / output variance over the layer, 0 (linear) to 1."""
        self._moments = measure(state.model, state.calibration, state.open_sites())
        return {site: unexplained(moments) for site, moments in self._moments.items()}

    def apply(self, state: State, chosen: list[str]) -> None:
        """Replace by a*z + c."""
        for site in chosen:
            a, c, _ = self._moments[site].affine()
            state.remove(site, "affine", a, c)


def unexplained(moments: Moments) -> float:
    """Share of a layer's output variance that the best affine map per neuron leaves."""
    total = float(moments.output_variance.sum())
    return float(moments.affine()[2].sum()) / total if total > 0 else 0.0

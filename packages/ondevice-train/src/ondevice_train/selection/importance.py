"""How much a channel or layer matters: gradient norms, RGN, LaRa, layer rankings, and the tail index of gradient noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from ondevice_train.selection.layers import SelectableLayer

Norms = Mapping[str, NDArray[np.float64]]
"""By layer: the L2 gradient norm of every input channel."""


def rgn(norms: NDArray[np.float64], layer: SelectableLayer) -> NDArray[np.float64]:
    """Reweighted gradient norm of each channel: n_c / Θ_space(c) (TraDy eq. 7)."""
    return np.asarray(norms) / layer.cost


def layer_rgn(norms: NDArray[np.float64], layer: SelectableLayer) -> float:
    """Σ_c RGN_c (TraDy eq. 8, with the per-channel cost as MeDyate corrects it)."""
    return float(rgn(norms, layer).sum())


def lara(norms: NDArray[np.float64], layer: SelectableLayer) -> float:
    """Gradient norm of the whole layer over the cost of all its channels (MeDyate eq. 9)."""
    return float(np.linalg.norm(norms)) / (layer.inputs * layer.cost)


@dataclass(frozen=True)
class LayerScore:
    """One row of a ranking."""

    name: str
    rgn: float
    lara: float
    gradient_norm: float
    channels: int
    cost: int


@dataclass(frozen=True)
class Ranking:
    """Scores of all selectable layers in execution order, measured once and carried to the device as JSON.

    Attributes:
        model, data: what it was measured on.
        steps: gradient steps accumulated.
        seed: of data order and head.
        layers: the scores.
    """

    model: str
    data: str
    steps: int
    seed: int
    layers: tuple[LayerScore, ...]

    @staticmethod
    def of(norms: Norms, layers: Iterable[SelectableLayer], *, model: str = "", data: str = "", steps: int = 0, seed: int = 0) -> Ranking:
        """Score layers by their channels' (accumulated) gradient norms."""
        rows = tuple(
            LayerScore(
                layer.name,
                layer_rgn(norms[layer.name], layer),
                lara(norms[layer.name], layer),
                float(np.linalg.norm(norms[layer.name])),
                layer.inputs,
                layer.cost,
            )
            for layer in layers
        )
        return Ranking(model, data, steps, seed, rows)

    def order(self, by: str) -> list[LayerScore]:
        """Rows from best to worst by ``rgn`` or ``lara``; ties in execution order."""
        if by not in ("rgn", "lara"):
            raise InputError(f"layers can be ranked by rgn or lara, not {by!r}")
        return sorted(self.layers, key=lambda row: -getattr(row, by))

    def top(self, share: float = 0.97) -> list[str]:
        """The smallest set of best layers that holds `share` of the total RGN (TraDy D.5)."""
        rows = self.order("rgn")
        count = prefix_holding([row.rgn for row in rows], share)
        return [row.name for row in rows[:count]]

    @staticmethod
    def parse(data: Any, where: str = "ranking") -> Ranking:
        """From plain data.

        Raises:
            InputError: if fields are missing or of the wrong type.
        """
        try:
            rows = tuple(
                LayerScore(
                    str(row["name"]),
                    float(row["rgn"]),
                    float(row["lara"]),
                    float(row["gradient_norm"]),
                    int(row["channels"]),
                    int(row["cost"]),
                )
                for row in data["layers"]
            )
            return Ranking(str(data["model"]), str(data["data"]), int(data["steps"]), int(data["seed"]), rows)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: no layer ranking ({type(error).__name__} {error}); make one with `ondevice-train rank`") from error


def prefix_holding(descending: Iterable[float], share: float) -> int:
    """Length of the shortest prefix whose sum is at least `share` of the total; 0 for no values."""
    values = np.fromiter(descending, dtype=np.float64)
    if not len(values):
        return 0
    reached = np.cumsum(values) >= share * values.sum() * (1 - 1e-12)
    return int(np.argmax(reached)) + 1


def layers_for_budget(costs: Iterable[float], amount: float, share: float = 0.2) -> int:
    """How many of the best layers to draw from: the fewest of which the budget is at most `share` (MeDyate eq. 10).

    Args:
        costs: whole-layer costs, best layer first.
        amount: the budget.
        share: α_opt.

    Returns:
        K with α_K ≤ share < α_{K-1}; all layers if the budget is a larger share of everything.
    """
    totals = np.cumsum(np.fromiter(costs, dtype=np.float64))
    small = np.flatnonzero(amount <= share * totals)
    return int(small[0]) + 1 if len(small) else len(totals)


def tail_index(samples: NDArray[np.float64], block: int) -> float:
    """Tail index α of symmetric α-stable samples (Mohammadi 2015): 2 for Gaussian, 1 for Cauchy.

    1/α = (mean log|Y| - mean log|X|) / log(block), where Y are sums over blocks of `block` samples.

    Args:
        samples: 1-D, centred; their number a multiple of `block`.
        block: K_1, above 1.
    """
    x = np.asarray(samples, dtype=np.float64).reshape(-1)
    if block < 2 or len(x) % block:
        raise InputError(f"block is {block}; it is above 1 and divides the {len(x)} samples")
    y = x.reshape(-1, block).sum(1)
    return float(np.log(block) / (np.log(np.abs(y)).mean() - np.log(np.abs(x)).mean()))

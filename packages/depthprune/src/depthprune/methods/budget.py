"""How EGP and NEPENTHE share out what is to be pruned: relevance, softmax, water-filling, whole numbers."""

from __future__ import annotations

import math

from edge_shared.errors import InputError


def relevance(irrelevance: dict[str, float]) -> dict[str, float]:
    """R_l = sum_j I_j / I_l: high where little is lost; layers with I_l = 0 are left out (EGP 2023)."""
    total = sum(irrelevance.values())
    return {name: total / value for name, value in irrelevance.items() if value > 0}


def shares(irrelevance: dict[str, float], remaining: dict[str, int], budget: float) -> dict[str, float]:
    """Weights to prune per layer: budget * softmax(R), never more than a layer has; the surplus goes to the others.

    Invariant to scaling all I, because only their ratios enter.

    Args:
        irrelevance: I_l = H_l * mean |w| over the non-zero weights of layer l.
        remaining: non-zero weights per layer.
        budget: weights to prune in all.

    Returns:
        A share per layer of `irrelevance`; they add up to the budget, or to all weights if that is less.
    """
    open_layers = {name for name, value in irrelevance.items() if value > 0 and remaining[name] > 0}
    result = dict.fromkeys(irrelevance, 0.0)
    budget = min(budget, float(sum(remaining[name] for name in open_layers)))
    while open_layers and budget > 0:
        R = relevance({name: irrelevance[name] for name in open_layers})
        top = max(R.values())
        weights = {name: math.exp(value - top) for name, value in R.items()}
        total = sum(weights.values())
        part = {name: budget * weight / total for name, weight in weights.items()}
        full = [name for name in open_layers if part[name] >= remaining[name]]
        if not full:
            result.update(part)
            break
        for name in full:
            result[name] = float(remaining[name])
            budget -= remaining[name]
            open_layers.discard(name)
    return result


def whole(shares: dict[str, float], remaining: dict[str, int]) -> dict[str, int]:
    """Round shares to whole numbers with the same (rounded) sum, by largest remainder; never above `remaining`."""
    result = {name: min(math.floor(value + 1e-9), remaining[name]) for name, value in shares.items()}
    missing = round(sum(shares.values())) - sum(result.values())
    for name in sorted(shares, key=lambda name: result[name] - shares[name]):
        if missing <= 0:
            break
        if result[name] < remaining[name]:
            result[name] += 1
            missing -= 1
    return result


def check_fraction(zeta: float) -> None:
    """Raise `InputError` unless 0 < zeta <= 1."""
    if not 0 < zeta <= 1:
        raise InputError(f"zeta is {zeta}; the share of weights to prune per round is above 0 and at most 1")

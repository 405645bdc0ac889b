"""Activations that are worth removing only together."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from depthprune.capture import module_of
from depthprune.padding import THROUGH


def depthwise_pairs(gm: fx.GraphModule) -> list[tuple[str, str]]:
    """Sites before and behind one depthwise convolution, in the order of the calls.

    Without both of them the convolution can merge with one neighbour only, into a dense kernel over all expanded channels, which never
    pays; without both, expansion, depthwise convolution and projection are one small dense convolution.

    Args:
        gm: captured graph.
    """
    found = []
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if not isinstance(module, nn.modules.conv._ConvNd) or module.groups != module.in_channels or module.groups == 1:
            continue
        before: Any = node.args[0]
        behind: Any = node
        while isinstance(behind, fx.Node) and len(behind.users) == 1:
            behind = next(iter(behind.users))
            if "site" in behind.meta or not isinstance(module_of(gm, behind), THROUGH):
                break
        if isinstance(before, fx.Node) and "site" in before.meta and len(before.users) == 1 and "site" in behind.meta:
            found.append((before.meta["site"], behind.meta["site"]))
    return found


def level(scores: dict[str, float], pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Scores in which both of a pair have their mean, so that they are chosen one after the other; the order stays."""
    result = dict(scores)
    for first, second in pairs:
        if first in scores and second in scores:
            result[first] = result[second] = (scores[first] + scores[second]) / 2
    return result


def complete(chosen: list[str], scores: dict[str, float], pairs: list[tuple[str, str]]) -> list[str]:
    """`chosen` with the other half of a pair added where only one was taken and the other is still there."""
    partner = dict(pairs) | {b: a for a, b in pairs}
    return chosen + [partner[site] for site in chosen if site in partner and partner[site] in scores and partner[site] not in chosen]

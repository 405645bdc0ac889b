"""Which activations are worth taking out: those whose layers would then be merged. Asked before anything is trained for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, fx

from depthprune.capture import capture, shape
from depthprune.fold import as_conv, prepare
from depthprune.merge.borders import Merged
from depthprune.merging import merge
from depthprune.padding import move_to_front, runs
from depthprune.prices import Backend, Price, make
from depthprune.surgery import remove


def worth_merging(
    gm: fx.GraphModule, example: Tensor, candidates: Iterable[str], policy: str, backend: Backend = "onnxruntime", threads: int = 1
) -> frozenset[str]:
    """Those of the candidates that a merge by the policy, or by MACs, would close over if all candidates were gone.

    A rehearsal on a copy: what a merge costs and saves depends on shapes and not on weights. Fewer multiply-accumulates always
    count as worth a try, so that a busy machine cannot rule them out; two 3x3 convolutions, which are one 5x5 with more of them,
    count if the policy wants them. A merge has to beat the layers as the dense network has them: with their padding moved to the front
    their maps are larger, and a merge that only wins that back makes nothing faster; nor does one that saves less than timings differ by. Without the rehearsal such layers would lose
    their activation, and have their padding moved, for nothing.

    Args:
        gm: captured graph in evaluation mode.
        example: one input, batch first.
        candidates: names of activations.
        policy, backend, threads: as `merging.merge`.
    """
    names = set(candidates)
    trial = copy.deepcopy(gm).eval()
    for name in sorted(names):
        remove(trial, name)
    between = _between(trial, names)
    dense = prepare(capture(copy.deepcopy(trial), example), example)
    move_to_front(trial, names)
    found: set[str] = set()
    for wanted in dict.fromkeys(("macs", policy)):
        price = make(wanted, backend, threads)
        result = merge(trial, example, policy=wanted, price=price)
        for certificate in result.certificates:
            grown = sum(_cost(result.reference, name, price) - _cost(dense, name, price) for name in certificate.layers)
            if price.combine == "max" or certificate.cost_after < (1 - price.noise) * (certificate.cost_before - grown):
                found |= {name for name, sides in between.items() if sides <= set(certificate.layers)}
    return frozenset(found | (names - between.keys()))


def _cost(gm: fx.GraphModule, layer: str, price: Price) -> float:
    """Price of one layer where it stands in a prepared graph."""
    node = next(node for node in gm.graph.nodes if str(node.target) == layer)
    return price.layer(Merged(as_conv(gm, node), "exact"), shape(node.all_input_nodes[0]))


def _between(gm: fx.GraphModule, removed: set[str]) -> dict[str, set[str]]:
    """For each removed activation in a chain of layers the names of the layers before and behind it."""
    result: dict[str, set[str]] = {}
    for chain in runs(gm, removed):
        for node in chain[1:]:
            sites, behind = [], node.args[0]
            while isinstance(behind, fx.Node) and behind not in chain:
                if behind.meta.get("site") in removed:
                    sites.append(behind.meta["site"])
                behind = behind.args[0]
            if isinstance(behind, fx.Node):
                result |= {site: {str(behind.target), str(node.target)} for site in sites}
    return result

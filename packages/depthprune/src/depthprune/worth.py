"""Which activations are worth taking out: those whose layers would then be merged. Asked before anything is trained for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, fx

from depthprune.merging import merge
from depthprune.padding import move_to_front, runs
from depthprune.prices import Backend
from depthprune.surgery import remove


def worth_merging(
    gm: fx.GraphModule, example: Tensor, candidates: Iterable[str], policy: str, backend: Backend = "onnxruntime", threads: int = 1
) -> frozenset[str]:
    """Those of the candidates that a merge by the policy, or by MACs, would close over if all candidates were gone.

    A rehearsal on a copy: what a merge costs and saves depends on shapes and not on weights. Fewer multiply-accumulates always
    count as worth a try, so that a busy machine cannot rule them out; two 3x3 convolutions, which are one 5x5 with more of them,
    count if the policy wants them. Without the rehearsal such layers would lose their activation, and have their padding moved
    to the front, which makes their maps larger, for nothing.

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
    move_to_front(trial, names)
    found: set[str] = set()
    for wanted in dict.fromkeys(("macs", policy)):
        merged = [
            set(certificate.layers) for certificate in merge(trial, example, policy=wanted, backend=backend, threads=threads).certificates
        ]
        found |= {name for name, sides in between.items() if any(sides & layers == sides for layers in merged)}
    return frozenset(found | (names - between.keys()))


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

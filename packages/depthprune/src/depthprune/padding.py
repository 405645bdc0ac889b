"""Move zero padding to the front of what will be merged, before fine-tuning: afterwards the merge is exact everywhere."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from depthprune.capture import module_of, shape
from depthprune.fold import calls
from depthprune.merge.borders import front_pad
from depthprune.merge.conv import Refused, from_module
from depthprune.surgery import ChannelAffine

THROUGH = (nn.modules.batchnorm._BatchNorm, nn.Identity, nn.Dropout, nn.Dropout2d, ChannelAffine)
Layer = nn.modules.conv._ConvNd | nn.Linear


def runs(gm: fx.GraphModule, through: set[str]) -> list[list[fx.Node]]:
    """Chains of layers between which only norms and the activations `through` (removed, or about to be) stand.

    A layer called twice, or a tensor that something else reads as well, ends a chain.

    Args:
        gm: captured graph.
        through: names of call sites that count as gone.

    Returns:
        Chains of two or more layer nodes.
    """
    shared = calls(gm)
    following: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if not _is_layer(gm, node, shared):
            continue
        behind, opened = node.args[0], False
        while isinstance(behind, fx.Node) and len(behind.users) == 1:
            module = module_of(gm, behind)
            if _is_layer(gm, behind, shared):
                same = isinstance(module, nn.Linear) == isinstance(module_of(gm, node), nn.Linear)
                if opened and same:
                    following[behind] = node
                break
            site = behind.meta.get("site")
            if site in through:
                opened = True
            elif site is not None or not isinstance(module, THROUGH):
                break
            behind = behind.args[0]
    starts = [node for node in following if node not in following.values()]
    chains = []
    for node in starts:
        chain = [node]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        chains.append(chain)
    return chains


def _is_layer(gm: fx.GraphModule, node: Any, shared: dict[str, int]) -> bool:
    return isinstance(module_of(gm, node), nn.modules.conv._ConvNd | nn.Linear) and shared[str(node.target)] == 1


def move_to_front(gm: fx.GraphModule, removed: set[str]) -> list[str]:
    """Move the padding of every chain that a removed activation opened to its first convolution.

    Output sizes stay; values near borders change, which is why this comes before fine-tuning.

    Args:
        gm: captured graph, changed in place.
        removed: names of removed sites.

    Returns:
        Names of the convolutions that pad differently now.
    """
    changed = []
    for chain in runs(gm, removed):
        modules: list[Any] = [module_of(gm, node) for node in chain]
        if any(isinstance(module, nn.Linear) for module in modules):
            continue
        try:
            convs = [from_module(module) for module in modules]
        except Refused:
            continue
        if not any(any(pair) for conv in convs[1:] for pair in conv.padding):
            continue
        moved = front_pad(convs)
        if any(before != after for conv in moved for before, after in conv.padding):
            continue
        for node, module, conv in zip(chain, modules, moved, strict=True):
            module.padding = tuple(before for before, _ in conv.padding)
            changed.append(str(node.target))
    return changed


def mergeable_sites(gm: fx.GraphModule) -> dict[str, str | None]:
    """For each activation that is left: None if removing it lets two layers merge, else what stands in the way."""
    from depthprune.capture import sites
    from depthprune.merging import is_flatten, is_global_average

    shared = calls(gm)
    result: dict[str, str | None] = {}
    for site in sites(gm):
        node = next(n for n in gm.graph.nodes if n.meta.get("site") == site.name)
        if any(_between(gm, chain, node) for chain in runs(gm, {site.name})):
            result[site.name] = None
            continue
        readers = [user for user in node.users if user.op != "output"]
        module = module_of(gm, readers[0]) if readers else None
        before: Any = node.args[0]
        while isinstance(before, fx.Node) and isinstance(module_of(gm, before), THROUGH):
            before = before.args[0]
        layer = module_of(gm, before)
        if (len(readers) == 1 and is_global_average(gm, readers[0]) and isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)) or (
            len(readers) == 1 and is_flatten(gm, readers[0]) and _flattened_into_linear(gm, readers[0], layer, shared)
        ):
            result[site.name] = None
        elif len(readers) > 1:
            result[site.name] = f"{len(readers)} operations read its output"
        elif not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            what = type(layer).__name__ if layer is not None else str(getattr(getattr(before, "target", ""), "__name__", "an operation"))
            result[site.name] = f"its input comes from {what}, not from one layer"
        elif shared[str(before.target)] > 1:
            result[site.name] = f"the layer before it is used {shared[str(before.target)]} times"
        elif module is None or not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            what = (
                type(module).__name__
                if module is not None
                else str(getattr(readers[0].target, "__name__", readers[0].target))
                if readers
                else "the output"
            )
            result[site.name] = f"{what} reads it"
        else:
            result[site.name] = "the layers beside it cannot be merged"
    return result


def _flattened_into_linear(gm: fx.GraphModule, flatten: fx.Node, layer: nn.Module | None, shared: dict[str, int]) -> bool:
    """Whether a convolution's flattened map is read by one linear layer of its own."""
    if not isinstance(layer, nn.Conv2d) or len(flatten.users) != 1:
        return False
    reader = next(iter(flatten.users))
    while isinstance(module_of(gm, reader), nn.Dropout) and len(reader.users) == 1:
        reader = next(iter(reader.users))
    return isinstance(module_of(gm, reader), nn.Linear) and shared[str(reader.target)] == 1


def _between(gm: fx.GraphModule, chain: list[fx.Node], site: fx.Node) -> bool:
    for node in chain[1:]:
        behind: Any = node.args[0]
        while isinstance(behind, fx.Node) and behind not in chain and shape(behind):
            if behind is site:
                return True
            behind = behind.args[0]
    return False

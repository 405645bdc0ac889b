"""Channel sorting: the most important middle channels first, so that a narrower network keeps the best of the wider one.

The official MOOFA code never calls it; `moofa.training` does, before each phase that adds narrower networks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from edge_shared.architectures.mobile import make_divisible
from torch import Tensor

from moofa.space import middle
from moofa.supernet.layers import ElasticNorm
from moofa.supernet.network import ElasticBlock, Supernet


@torch.no_grad()
def sort_channels(supernet: Supernet, trained: list[tuple[float, ...]]) -> None:
    """Permute the middle channels of every elastic block by falling importance; every trained network stays the same function.

    Importance is the L1 norm of a channel's column in the projection (Cai et al. 2020, section 3.3). Channels move only
    between two neighbouring widths that are already trained, which keeps those prefix sets. Where the space has expand 1
    the first ``channels`` depthwise filters belong to the input channels one by one and do not move at all.

    Args:
        supernet: changed in place.
        trained: per stage, the expansions that are trained so far; those of the largest width only: ``(4,)``.
    """
    for blocks, expands in zip(supernet.stages, trained, strict=True):
        for block in blocks:  # type: ignore[attr-defined]
            _sort_block(block, expands)


def _sort_block(block: ElasticBlock, trained: tuple[float, ...]) -> None:
    if block.expands[-1] == 1:
        return
    importance_M = block.project.weight.abs().sum((0, 2, 3))
    edges = {middle(block.channels, expand) for expand in trained} | {0, len(importance_M)}
    frozen = block.channels if 1 in block.expands else 0
    if frozen:
        edges.add(frozen)
    order = []
    bounds = sorted(edges)
    for low, high in pairwise(bounds):
        inside = torch.arange(low, high)
        if high > frozen:
            inside = inside[torch.argsort(importance_M[low:high], descending=True, stable=True).cpu()]
        order.append(inside)
    order_M = torch.cat(order).to(importance_M.device)
    _take(block.expand.weight, order_M)
    _take(block.depthwise.weight, order_M)
    _take(block.project.weight, order_M, axis=1)
    for norm in (block.expand_norm, block.depthwise_norm):
        _take_norm(norm, order_M)
    if block.se is not None and block.se.excite.bias is not None:
        _take(block.se.reduce.weight, order_M, axis=1)
        _take(block.se.excite.weight, order_M)
        _take(block.se.excite.bias, order_M)
        _sort_hidden(block, trained)


def _sort_hidden(block: ElasticBlock, trained: tuple[float, ...]) -> None:
    # Hidden units of the squeeze are nested as well: a narrower network uses the first of them.
    se = block.se
    if se is None or se.reduce.bias is None:
        return
    importance_H = se.excite.weight.abs().sum((0, 2, 3))
    edges = {make_divisible(middle(block.channels, expand) // 4) for expand in trained} | {0, len(importance_H)}
    bounds = sorted(edges)
    order_H = torch.cat([low + torch.argsort(importance_H[low:high], descending=True, stable=True) for low, high in pairwise(bounds)])
    _take(se.reduce.weight, order_H)
    _take(se.reduce.bias, order_H)
    _take(se.excite.weight, order_H, axis=1)


def _take(tensor: Tensor, order: Tensor, axis: int = 0) -> None:
    tensor.copy_(tensor.index_select(axis, order))


def _take_norm(norm: ElasticNorm, order: Tensor) -> None:
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        _take(tensor, order)

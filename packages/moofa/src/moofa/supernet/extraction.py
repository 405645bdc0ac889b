"""Cut one network out of the supernet: an ordinary module with ordinary layers and the same outputs."""

from __future__ import annotations

from typing import Any

import torch
from edge_shared.architectures import mobile
from torch import Tensor, nn

from moofa.space import Choice, middle
from moofa.supernet.layers import ElasticNorm, ElasticPointwise
from moofa.supernet.network import ElasticBlock, Supernet, Unit


@torch.no_grad()
def extract(supernet: Supernet, choice: Choice) -> nn.Module:
    """The stand-alone network of `choice`, in evaluation mode, with the supernet's present running statistics.

    Calibrate the supernet for this choice first. Kernels are materialised: what is stored is an ordinary filter.

    Args:
        supernet: the source; unchanged.
        choice: a network of its space.

    Returns:
        A module (`edge_shared.architectures.mobile`) that takes images of the choice's resolution.

    Raises:
        InputError: if the choice is not of this space.
    """
    network: Any = mobile.module(supernet.space.config(choice))
    network.to(supernet.classifier.weight)
    _copy_unit(network.stem, supernet.stem)
    parts: list[tuple[ElasticBlock, int, float]] = []
    if supernet.first is not None and supernet.space.first is not None:
        parts.append((supernet.first, supernet.space.first.kernel, supernet.space.first.expand))
    for blocks, chosen in zip(supernet.stages, choice.stages, strict=True):
        parts += [(block, *options) for block, options in zip(blocks, chosen, strict=False)]  # type: ignore[call-overload]
    for target, (block, kernel, expand) in zip(network.blocks, parts, strict=True):
        _copy_block(target, block, kernel, expand)
    if supernet.final_expand is not None:
        _copy_unit(network.final_expand, supernet.final_expand)
    if supernet.feature_mix is not None:
        _copy_unit(network.feature_mix, supernet.feature_mix)
    _copy(network.classifier.weight, supernet.classifier.weight)
    _copy(network.classifier.bias, supernet.classifier.bias)
    return network.eval()


def _copy(target: Tensor, source: Tensor) -> None:
    if target.shape != source.shape:
        raise AssertionError(f"extraction would copy {tuple(source.shape)} into {tuple(target.shape)}")
    target.copy_(source)


def _copy_norm(target: nn.BatchNorm2d, source: ElasticNorm) -> None:
    channels = target.num_features
    for name in ("weight", "bias", "running_mean", "running_var"):
        _copy(getattr(target, name), getattr(source, name)[:channels])
    target.eps = source.eps


def _copy_unit(target: Any, source: Unit) -> None:
    _copy(target.conv.weight, source.conv.weight)
    if source.norm is not None:
        _copy_norm(target.bn, source.norm)


def _copy_pointwise(target: nn.Conv2d, source: ElasticPointwise) -> None:
    _copy(target.weight, source.weight[: target.out_channels, : target.in_channels])
    if target.bias is not None and source.bias is not None:
        _copy(target.bias, source.bias[: target.out_channels])


def _copy_block(target: Any, source: ElasticBlock, kernel: int, expand: float) -> None:
    channels = middle(source.channels, expand)
    if expand != 1:
        _copy_pointwise(target.expand.conv, source.expand)
        _copy_norm(target.expand.bn, source.expand_norm)
    _copy(target.depthwise.conv.weight, source.depthwise.filters(kernel, channels))
    _copy_norm(target.depthwise.bn, source.depthwise_norm)
    if source.se is not None:
        _copy_pointwise(target.se.reduce, source.se.reduce)
        _copy_pointwise(target.se.excite, source.se.excite)
    _copy_pointwise(target.project.conv, source.project)
    _copy_norm(target.project.bn, source.project_norm)

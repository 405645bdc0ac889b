"""Fold normalisation into the layers beside it (inference only)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from depthprune.merge.conv import Conv, Refused


@dataclass(frozen=True, eq=False)
class Scale:
    """Per-channel affine map ``a*x + c``; both of shape (C,)."""

    a: Tensor
    c: Tensor


def batch_norm(module: nn.Module, dtype: torch.dtype = torch.float64) -> Scale:
    """What a batch norm computes at inference: a = gamma/sqrt(var + eps), c = beta - mean*a.

    Raises:
        Refused: in training mode, where it depends on the batch, or without running statistics.
    """
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        raise Refused(f"{type(module).__name__} is no batch norm")
    if module.training:
        raise Refused("a batch norm in training mode depends on the batch; call model.eval() first")
    if module.running_mean is None or module.running_var is None:
        raise Refused("a batch norm without running statistics depends on the batch")
    var = module.running_var.to(dtype) + module.eps
    gamma = torch.ones_like(var) if module.weight is None else module.weight.detach().to(dtype)
    beta = torch.zeros_like(var) if module.bias is None else module.bias.detach().to(dtype)
    a = gamma / var.sqrt()
    return Scale(a, beta - module.running_mean.to(dtype) * a)


def scale_after(conv: Conv, scale: Scale) -> Conv:
    """Fold an affine map behind a convolution or linear layer into it (any groups, stride, dilation, padding)."""
    a = scale.a.reshape(-1, *[1] * (conv.weight.ndim - 1))
    return replace(conv, weight=conv.weight * a, bias=conv.bias * scale.a + scale.c)


def scale_before(scale: Scale, conv: Conv) -> tuple[Conv, Tensor | None]:
    """Fold an affine map in front of a convolution into it.

    Returns:
        The convolution, and the constant (I,) that its padding must hold to stay exact: -c/a, which the map sends to zero;
        None if it pads nothing (then it is exact as it is).

    Raises:
        Refused: if the convolution pads and some a is zero while its c is not.
    """
    a = scale.a.reshape(conv.groups, 1, -1, *[1] * conv.axes)
    weight = (conv.weight.reshape(conv.groups, -1, *conv.weight.shape[1:]) * a).reshape(conv.weight.shape)
    total = conv.weight.flatten(2).sum(2) if conv.axes else conv.weight
    inner = (total.reshape(conv.groups, -1, total.shape[1]) @ scale.c.reshape(conv.groups, -1, 1)).flatten()
    folded = replace(conv, weight=weight, bias=conv.bias + inner)
    if not any(any(pair) for pair in conv.padding):
        return folded, None
    if bool(((scale.a == 0) & (scale.c != 0)).any()):
        raise Refused("a channel is a constant in front of a padded convolution; no padding value is mapped to zero")
    return folded, torch.where(scale.a == 0, torch.zeros_like(scale.a), -scale.c / torch.where(scale.a == 0, 1.0, scale.a))


def layer_norm_affine(gamma: Tensor, beta: Tensor, linear: Conv) -> Conv:
    """Fold the affine part of a layer norm into the linear layer behind it: W diag(gamma), b + W beta; the normalisation stays."""
    return replace(linear, weight=linear.weight * gamma, bias=linear.bias + linear.weight @ beta)

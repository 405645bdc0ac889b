"""Quantisation-aware scaling (Lin 2022): gradients of an int8 graph on the scale of its fp32 counterpart.

An int8 weight stands for W = s_W · W̄, so that a plain step on W̄ is too small by s_W² (and a bias, kept on the scale s_W s_x,
by its square): G̃_W = G_W̄ · s_W^-2, G̃_b = G_b̄ · (s_W s_x)^-2. Scales of weights are one per output channel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantise_weight(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Symmetric rounding per output channel: integers (as floats) and the scales s_W (O,); a zero channel has scale 1."""
    limit = 2 ** (bits - 1) - 1
    scale = weight.detach().flatten(1).abs().amax(1) / limit
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight.detach() / _along_outputs(scale, weight)).round().clamp(-limit, limit), scale


def weight_scale(effective: Tensor, input_scale: float, output_scale: float) -> Tensor:
    """s_W from the scale that an integer kernel carries: effective = s_x s_W / s_y."""
    return effective * output_scale / input_scale


def scale_weight_gradient(gradient: Tensor, scale: Tensor) -> Tensor:
    """G̃_W: the gradient of the integer weight (O, ...) divided by s_W² (O,)."""
    return gradient / _along_outputs(scale.square(), gradient)


def scale_bias_gradient(gradient: Tensor, scale: Tensor, input_scale: float) -> Tensor:
    """G̃_b: the gradient of the integer bias (O,) divided by (s_W s_x)²."""
    return gradient / (scale * input_scale).square()


def _along_outputs(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *([1] * (like.ndim - 1)))

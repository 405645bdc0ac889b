"""What a layer computes, apart from its weights: the exact forward pass, dX and dense dW of Conv2d and Linear.

Dimension letters: B batch, C channels in, O channels out, H W in, P Q out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ondevice_train.ops import conv_gradients

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, zero padding (top, bottom, left, right), dilation and groups of a Conv2d."""

    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int

    @staticmethod
    def of(conv: nn.Conv2d) -> ConvGeometry:
        """The geometry of a torch convolution with zero padding; ``padding="same"`` may come out asymmetric."""
        kernel, dilation = cast(Pair, conv.kernel_size), cast(Pair, conv.dilation)
        if conv.padding == "same":
            totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            padding = (totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2)
        elif conv.padding == "valid":
            padding = (0, 0, 0, 0)
        else:
            high, wide = cast(Pair, conv.padding)
            padding = (high, high, wide, wide)
        return ConvGeometry(kernel, cast(Pair, conv.stride), padding, dilation, conv.groups)

    @property
    def symmetric(self) -> bool:
        """Whether torch's own padding argument can express the padding."""
        top, bottom, left, right = self.padding
        return top == bottom and left == right

    def _pad(self, x: Tensor) -> tuple[Tensor, Pair]:
        top, bottom, left, right = self.padding
        if self.symmetric:
            return x, (top, left)
        return F.pad(x, (left, right, top, bottom)), (0, 0)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of x (B, C, H, W) -> (B, O, P, Q)."""
        padded, padding = self._pad(x)
        return F.conv2d(padded, weight, bias, self.stride, padding, self.dilation, self.groups)

    def input_gradient(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Exact dX of the given shape from grad (B, O, P, Q)."""
        top, bottom, left, right = self.padding
        if self.symmetric:
            return conv_gradients.input_gradient(grad, weight, shape, self.stride, (top, left), self.dilation, self.groups)
        padded = (*shape[:2], shape[2] + top + bottom, shape[3] + left + right)
        full = conv_gradients.input_gradient(grad, weight, padded, self.stride, (0, 0), self.dilation, self.groups)
        return full[:, :, top : top + shape[2], left : left + shape[3]]

    def weight_gradient(self, x: Tensor, grad: Tensor, groups: int | None = None) -> Tensor:
        """Exact dense dW (O, C / groups, kh, kw)."""
        groups = self.groups if groups is None else groups
        padded, padding = self._pad(x)
        return conv_gradients.weight_gradient(grad, padded, self.kernel, self.stride, padding, self.dilation, groups)

    def bias_gradient(self, grad: Tensor) -> Tensor:
        """Exact db (O,)."""
        return grad.sum((0, 2, 3))

    def weight_size(self, shape: torch.Size, out_channels: int) -> tuple[int, ...]:
        """Size of the weight for an input of that shape."""
        return (out_channels, shape[1] // self.groups, *self.kernel)


@dataclass(frozen=True)
class LinearGeometry:
    """A Linear on an input of any number of dimensions, features last."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b``."""
        return F.linear(x, weight, bias)

    def input_gradient(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Exact dX of the given shape."""
        return (grad @ weight).view(shape)

    def weight_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """Exact dense dW (O, C)."""
        return grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])

    def bias_gradient(self, grad: Tensor) -> Tensor:
        """Exact db (O,)."""
        return grad.reshape(-1, grad.shape[-1]).sum(0)


Geometry = ConvGeometry | LinearGeometry


def geometry_of(module: nn.Module) -> Geometry | None:
    """The geometry of a Conv2d (zero padding) or Linear, None for anything else."""
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        return ConvGeometry.of(module)
    if type(module) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return LinearGeometry()
    return None

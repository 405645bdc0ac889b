"""Gradient filter (CVPR 2023): the baseline that pools the input and the output gradient on r x r patches.

dW of every kernel tap is Σ over patches of (sum of x) (mean of G); dX uses the kernel summed over its taps and is constant
on a patch, so that errors grow with depth. Written from the equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ondevice_train.compression._codec import Codec, Footprint, Saved
from ondevice_train.compression._geometry import ConvGeometry, Geometry


class GradientFilter(Codec):
    """Keeps the input summed over patches of `patch` times stride: B C p_h p_w elements, p = ceil(output / patch).

    With a stride s the patch gradient spreads over s² times as many input pixels, so dX is divided by s² to keep its sum.
    """

    def __init__(self, patch: int, geometry: ConvGeometry) -> None:
        self.patch = patch
        self.geometry = geometry

    def _patches(self, shape: Sequence[int]) -> tuple[int, int]:
        sizes = []
        for axis in (0, 1):
            before, after = self.geometry.padding[2 * axis : 2 * axis + 2]
            reach = self.geometry.dilation[axis] * (self.geometry.kernel[axis] - 1) + 1
            out = (shape[2 + axis] + before + after - reach) // self.geometry.stride[axis] + 1
            sizes.append(math.ceil(out / self.patch))
        return sizes[0], sizes[1]

    def _window(self) -> tuple[int, int]:
        return self.patch * self.geometry.stride[0], self.patch * self.geometry.stride[1]

    def encode(self, x: Tensor) -> Saved:
        """Patch sums of x, (B, C, p_h, p_w)."""
        high, wide = self._patches(x.shape)
        window = self._window()
        # Pixels past the last patch (valid convolutions) count with none; missing ones are zero.
        fit = F.pad(x.detach(), (0, wide * window[1] - x.shape[3], 0, high * window[0] - x.shape[2]))
        return (F.avg_pool2d(fit, window, window, divisor_override=1),)

    def _pooled(self, grad: Tensor) -> Tensor:
        return F.avg_pool2d(grad, self.patch, self.patch, ceil_mode=True, count_include_pad=False)

    def weight_gradient(self, saved: Saved, grad: Tensor, geometry: Geometry) -> Tensor:
        """The same value for every tap of a kernel."""
        (sums,) = saved
        assert sums is not None
        groups, g = self.geometry.groups, self._pooled(grad)
        b, o, c = g.shape[0], g.shape[1], sums.shape[1]
        taps = torch.einsum("bgop,bgcp->goc", g.reshape(b, groups, o // groups, -1), sums.reshape(b, groups, c // groups, -1))
        return taps.reshape(o, c // groups, 1, 1).expand(-1, -1, *self.geometry.kernel).contiguous()

    def input_gradient(self, grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        """Approximate dX, constant on each patch."""
        groups, g = self.geometry.groups, self._pooled(grad)
        summed = weight.sum((2, 3), keepdim=True)
        small = F.conv_transpose2d(g, summed, groups=groups) / (self.geometry.stride[0] * self.geometry.stride[1])
        window = self._window()
        full = small.repeat_interleave(window[0], 2).repeat_interleave(window[1], 3)
        fit = full[:, :, : shape[2], : shape[3]]
        return F.pad(fit, (0, shape[3] - fit.shape[3], 0, shape[2] - fit.shape[2]))

    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """B C p_h p_w elements."""
        high, wide = self._patches(shape)
        return {(id(self), "sums"): shape[0] * shape[1] * high * wide * itemsize}

    def __repr__(self) -> str:
        """Show the patch."""
        return f"GradientFilter(patch={self.patch})"

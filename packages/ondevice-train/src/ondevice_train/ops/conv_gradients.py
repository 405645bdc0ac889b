"""Gradients of a convolution, in the forms that are fastest on a CPU.

Torch's own backward pass wants the input even where only its shape matters, and is slow for depthwise kernels of 5 and 7 and for
1x1 kernels on large images. The same sums can be asked for as other operations:

* dX of a 1x1 kernel is a product of matrices; of a depthwise kernel at stride 1 a convolution with the turned kernel; of any other a
  transposed convolution. None of them sees an input.
* dW of a depthwise kernel is a convolution of each input plane with its output gradient as the kernel, or of few and small planes a
  product of their windows with it; of a 1x1 kernel a product.

Letters: B batch, C channels in, O out, H W pixels in, P Q out, k kernel, g groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = Sequence[int]
_WINDOWS = 1 << 14  # elements of which a copy of all windows costs less than a call of a convolution
_backward = torch.ops.aten.convolution_backward.default


def _pointwise(kernel: Pair, stride: Pair, padding: Pair, groups: int) -> bool:
    return groups == 1 and (*kernel, *stride, *padding) == (1, 1, 1, 1, 0, 0)


def input_gradient(grad: Tensor, weight: Tensor, shape: Sequence[int], stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """dX of size `shape` (B, C, H, W) from grad (B, O, P, Q) and weight (O, C / g, k, k)."""
    kernel = weight.shape[2:]
    if _pointwise(kernel, stride, padding, groups):
        batch, out = grad.shape[:2]
        if batch == 1:
            return torch.mm(weight.view(out, -1).t(), grad.reshape(out, -1)).view(*shape)
        turned = weight.view(out, -1).t().expand(batch, -1, -1)
        return torch.bmm(turned, grad.reshape(batch, out, -1)).view(*shape)
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if groups == weight.shape[0] == shape[1] and tuple(stride) == (1, 1) and min(reach) >= 0:
        return F.conv2d(grad, weight.flip(2, 3), None, 1, reach, dilation, groups)
    # The rows and columns of the input that no output position reaches at its end.
    extra = [n - ((m - 1) * s + r - p + 1) for n, m, s, r, p in zip(shape[2:], grad.shape[2:], stride, reach, padding, strict=True)]
    if all(0 <= e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        return F.conv_transpose2d(grad, weight, None, stride, padding, extra, groups, dilation)
    x = grad.new_empty(1).expand(*shape)  # only its shape enters
    return _backward(grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False))[0]  # type: ignore[no-any-return]


def weight_gradient(grad: Tensor, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """dW (O, C / g, k, k) from grad (B, O, P, Q) and x (B, C, H, W)."""
    batch, channels, out = x.shape[0], x.shape[1], grad.shape[1]
    if tuple(kernel) == (1, 1) and max(stride) > 1 and max(padding) == 0:
        # The pixels in use alone: less work, and oneDNN's own way writes past its buffer for fewer than eight channels (torch 2.13).
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    if _pointwise(kernel, stride, padding, groups) and channels <= math.prod(x.shape[2:]):
        # Never larger than the output gradient; on smaller images torch's way is the faster one.
        if batch == 1:
            return torch.mm(grad.reshape(out, -1), x.reshape(channels, -1).t()).view(out, channels, 1, 1)
        per_sample = torch.bmm(grad.reshape(batch, out, -1), x.reshape(batch, channels, -1).transpose(1, 2))
        return per_sample.sum(0).view(out, channels, 1, 1)
    if groups == channels == out and batch * channels * math.prod(kernel) * math.prod(grad.shape[2:]) <= _WINDOWS:
        padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
        step = padded.stride()
        windows = padded.as_strided(
            (batch, channels, *kernel, *grad.shape[2:]),
            (*step[:2], step[2] * dilation[0], step[3] * dilation[1], step[2] * stride[0], step[3] * stride[1]),
        ).reshape(batch * channels, math.prod(kernel), -1)
        per_sample = torch.bmm(windows, grad.reshape(batch * channels, -1, 1))
        return per_sample.view(batch, channels, *kernel).sum(0)[:, None]
    if groups == channels == out > 1 and max(kernel) >= 5:
        planes = F.conv2d(
            x.reshape(1, batch * channels, *x.shape[2:]), grad.reshape(batch * channels, 1, *grad.shape[2:]), None, dilation, padding, stride,
            batch * channels,
        )  # fmt: skip
        return planes.view(batch, channels, *planes.shape[2:]).sum(0)[:, None, : kernel[0], : kernel[1]]
    weight = grad.new_empty((1,)).expand(out, channels // groups, *kernel)
    return _backward(grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (False, True, False))[1]  # type: ignore[no-any-return]

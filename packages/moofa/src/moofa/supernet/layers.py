"""Layers that hold the weights of the largest network and compute with a part of them.

Tensor names: B batch, C input channels, M middle channels, O output channels, H and W size, K and k kernel sizes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from edge_shared.architectures.mobile import make_divisible
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish}


class ElasticPointwise(nn.Module):
    """1x1 convolution: reads as many channels as it is given, writes the first `out` of its own."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, x_BCHW: Tensor, out: int) -> Tensor:
        """(B, C, H, W) to (B, out, H, W)."""
        bias = None if self.bias is None else self.bias[:out]
        return F.conv2d(x_BCHW, self.weight[:out, : x_BCHW.shape[1]], bias)


class ElasticDepthwise(nn.Module):
    """Depthwise convolution with one filter of the largest kernel per channel.

    A smaller kernel is the centre of the next larger one times a learned matrix that all channels share: 7 to 5 by a
    25x25 matrix, then 5 to 3 by a 9x9 matrix. The matrices start as identity, which is a plain centre crop.
    """

    def __init__(self, channels: int, kernels: tuple[int, ...], stride: int):
        super().__init__()
        self.kernels = tuple(sorted(kernels, reverse=True))
        self.stride = stride
        largest = self.kernels[0]
        self.weight = nn.Parameter(torch.empty(channels, 1, largest, largest))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.transforms = nn.ParameterDict({str(size): nn.Parameter(torch.eye(size * size)) for size in self.kernels[1:]})

    def filters(self, kernel: int, channels: int) -> Tensor:
        """The filters of one kernel size for the first `channels` channels, (channels, 1, kernel, kernel)."""
        weight = self.weight[:channels]
        for size in self.kernels[1:]:
            if weight.shape[-1] == kernel:
                break
            margin = (weight.shape[-1] - size) // 2
            crop = weight[:, :, margin : margin + size, margin : margin + size]
            weight = F.linear(crop.reshape(channels, size * size), self.transforms[str(size)]).view(channels, 1, size, size)
        return weight

    def forward(self, x_BMHW: Tensor, kernel: int) -> Tensor:
        """(B, M, H, W) to (B, M, H', W')."""
        channels = x_BMHW.shape[1]
        return F.conv2d(x_BMHW, self.filters(kernel, channels), None, self.stride, kernel // 2, groups=channels)


class ElasticNorm(nn.Module):
    """Batch norm of the first channels.

    While training it uses the batch and leaves the running statistics alone: those of shared channels would mix all
    networks. `moofa.supernet.calibrate` sets them for one network at a time. On several processes the batch is that of all of
    them together, so that training does not depend on how many share the work.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.observed: list[tuple[int, Tensor, Tensor]] | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise (B, C, H, W); while observing, note (samples, mean, biased variance) of the batch."""
        channels = x_BCHW.shape[1]
        weight, bias = self.weight[:channels], self.bias[:channels]
        if self.observed is not None:
            var_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3), correction=0)
            self.observed.append((x_BCHW.shape[0], mean_C, var_C))
            return F.batch_norm(x_BCHW, mean_C, var_C, weight, bias, False, 0.0, self.eps)
        if self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            mean_1C11, var_1C11 = _moments_of_all(x_BCHW)
            normal_BCHW = (x_BCHW - mean_1C11) * torch.rsqrt(var_1C11 + self.eps)
            return normal_BCHW * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
        if self.training:
            return F.batch_norm(x_BCHW, None, None, weight, bias, True, 0.0, self.eps)
        return F.batch_norm(x_BCHW, self.running_mean[:channels], self.running_var[:channels], weight, bias, False, 0.0, self.eps)


def _moments_of_all(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel over the batches of all processes, (1, C, 1, 1) each, with gradients through both."""
    from torch.distributed.nn.functional import all_reduce

    count = x_BCHW.numel() / x_BCHW.shape[1]
    sums = torch.cat([x_BCHW.sum((0, 2, 3)), x_BCHW.new_tensor([count])])
    sums = all_reduce(sums)  # type: ignore[no-untyped-call]
    mean_1C11 = (sums[:-1] / sums[-1]).view(1, -1, 1, 1)
    squares = all_reduce((x_BCHW - mean_1C11).square().sum((0, 2, 3)))  # type: ignore[no-untyped-call]
    return mean_1C11, (squares / sums[-1].detach()).view(1, -1, 1, 1)


class ElasticSqueezeExcite(nn.Module):
    """Channel gates; the hidden width follows the channels it is given (a quarter, rounded to 8)."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = make_divisible(channels // 4)
        self.reduce = ElasticPointwise(channels, hidden, bias=True)
        self.excite = ElasticPointwise(hidden, channels, bias=True)

    def forward(self, x_BMHW: Tensor) -> Tensor:
        """(B, M, H, W) to the same shape."""
        channels = x_BMHW.shape[1]
        gate_BM11 = x_BMHW.mean((2, 3), keepdim=True)
        gate_BM11 = self.excite(F.relu(self.reduce(gate_BM11, make_divisible(channels // 4))), channels)
        return x_BMHW * F.hardsigmoid(gate_BM11)

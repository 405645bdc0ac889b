"""MaxPool2d that keeps one byte an output element: where in its window the maximum was.

Torch keeps the whole input and an int64 index: after the stem of a ResNet, more than all its compressed layers together.
The gradient is torch's to the bit wherever windows do not overlap, and up to the order of additions where they do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Pair = tuple[int, int]


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class _CompactMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: CompactMaxPool2d) -> Tensor:
        y, index = F.max_pool2d_with_indices(x, pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
        rows, columns = pool.origins(y.shape, x.device)
        row = (index // x.shape[3] - rows) // pool.dilation[0]
        column = (index % x.shape[3] - columns) // pool.dilation[1]
        ctx.save_for_backward(row.mul_(pool.kernel[1]).add_(column).to(torch.uint8))
        ctx.pool, ctx.shape = pool, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (code,) = ctx.saved_tensors
        pool: CompactMaxPool2d = ctx.pool
        rows, columns = pool.origins(grad.shape, grad.device)
        code = code.long()
        row = rows + code // pool.kernel[1] * pool.dilation[0]
        index = row.mul_(ctx.shape[3]).add_(columns + code % pool.kernel[1] * pool.dilation[1])
        dx = grad.new_zeros((*ctx.shape[:2], ctx.shape[2] * ctx.shape[3]))
        dx.scatter_add_(2, index.flatten(2), grad.flatten(2))
        return dx.view(ctx.shape), None


class CompactMaxPool2d(nn.Module):
    """In place of an nn.MaxPool2d of at most 256 elements a window.

    Attributes:
        original: the torch module.
        kernel, stride, padding, dilation, ceil_mode: as there.
    """

    def __init__(self, original: nn.MaxPool2d) -> None:
        super().__init__()
        if not fits(original):
            raise ValueError("only windows of at most 256 elements, without returned indices, can be kept in a byte")
        self._original = (original,)
        self.kernel, self.stride = _pair(original.kernel_size), _pair(original.stride)
        self.padding, self.dilation = _pair(original.padding), _pair(original.dilation)
        self.ceil_mode = original.ceil_mode
        self.training = original.training

    @property
    def original(self) -> nn.MaxPool2d:
        """The torch module."""
        return self._original[0]

    def origins(self, shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """First row (P, 1) and first column (Q,) of every window, padding included, for an output of that shape."""
        rows = torch.arange(shape[2], device=device) * self.stride[0] - self.padding[0]
        return rows[:, None], torch.arange(shape[3], device=device) * self.stride[1] - self.padding[1]

    def saved_bytes(self, shape: Sequence[int]) -> int:
        """Bytes kept for an input (B, C, H, W): one for each output element."""
        sides = []
        for axis in (0, 1):
            size, step, pad = shape[2 + axis], self.stride[axis], self.padding[axis]
            room = size + 2 * pad - self.dilation[axis] * (self.kernel[axis] - 1) - 1
            side = -(-room // step) + 1 if self.ceil_mode else room // step + 1
            # A window that would begin in the padding at the end does not exist.
            sides.append(side - 1 if self.ceil_mode and (side - 1) * step >= size + pad else side)
        return math.prod((*shape[:2], *sides))

    def forward(self, x: Tensor) -> Tensor:
        """The maximum of each window of x (B, C, H, W)."""
        if not (torch.is_grad_enabled() and x.requires_grad) or x.ndim != 4:
            return self.original(x)  # type: ignore[no-any-return]
        return _CompactMaxPool.apply(x, self)


def fits(module: nn.Module) -> bool:
    """Whether a module is a max pooling that the compact form can stand for."""
    return type(module) is nn.MaxPool2d and not module.return_indices and math.prod(_pair(module.kernel_size)) <= 256

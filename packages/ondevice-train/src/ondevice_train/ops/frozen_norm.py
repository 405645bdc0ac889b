"""BatchNorm on fixed statistics that saves nothing of its input.

In train mode BatchNorm keeps its whole input for the backward pass; even in eval mode PyTorch keeps it when only the
bias is trained. With frozen statistics ``y = scale * x + shift`` per channel, so that dx = scale * dy and
dbias = Σ dy need no activation at all; only a trained weight needs x.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def _broadcast(vector: Tensor, ndim: int) -> Tensor:
    return vector.view(1, -1, *([1] * (ndim - 2)))


class _FrozenNorm(torch.autograd.Function):
    """y = (x - mean) * rstd * weight + bias; saves x only if the weight needs a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        # The variance is not a saved tensor but a buffer of the module: save_for_backward of inputs adds no bytes.
        ctx.eps = eps
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, mean, var, weight)
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, mean, var, weight = ctx.saved_tensors
        rstd = torch.rsqrt(var + ctx.eps)
        dims = [0, *range(2, grad.ndim)]
        dx = grad * _broadcast(rstd * weight, grad.ndim) if ctx.needs_input_grad[0] else None
        dbias = grad.sum(dims) if ctx.needs_input_grad[4] else None
        dweight = None
        if x is not None:
            dweight = (grad * (x - _broadcast(mean, grad.ndim))).sum(dims) * rstd
        return dx, None, None, dweight, dbias, None


def frozen_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise x (B, C, ...) by the fixed statistics mean, var (C,) and the affine weight, bias (C,).

    Saved for the backward pass beyond parameters and buffers: nothing, or x itself if `weight` requires a gradient.
    """
    return _FrozenNorm.apply(x, mean, var, weight, bias, eps)


class FrozenBatchNorm2d(nn.Module):
    """A BatchNorm2d that always uses its running statistics; shares parameters and buffers with `original`.

    `absorbed` says that the convolution before it applies it (`Selective.absorb`). The state_dict has the keys of nn.BatchNorm2d. Which of the affine parameters train is their ``requires_grad``.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__()
        if original.running_mean is None:
            raise ValueError("a BatchNorm2d without running statistics (track_running_stats=False) cannot be frozen")
        self._original = (original,)
        self.eps = original.eps
        self.absorbed = False
        if original.affine:
            self.weight, self.bias = original.weight, original.bias
        else:
            self.register_buffer("weight", torch.ones_like(original.running_mean), persistent=False)
            self.register_buffer("bias", torch.zeros_like(original.running_mean), persistent=False)
        self.register_buffer("running_mean", original.running_mean)
        self.register_buffer("running_var", original.running_var)
        self.register_buffer("num_batches_tracked", original.num_batches_tracked)

    @property
    def original(self) -> nn.BatchNorm2d:
        """The torch module that this one stands for, holding the present parameters and buffers."""
        norm = self._original[0]
        if norm.affine:
            norm.weight, norm.bias = cast(nn.Parameter, self.weight), cast(nn.Parameter, self.bias)
        norm.running_mean, norm.running_var = self.running_mean, self.running_var
        norm.num_batches_tracked = self.num_batches_tracked
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W); x itself if the convolution before has absorbed the norm."""
        if self.absorbed:
            return x
        if not (x.requires_grad or self.weight.requires_grad or self.bias.requires_grad):
            return torch.nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return frozen_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Show the channels and eps."""
        return f"{self.running_mean.numel()}, eps={self.eps}"


class FrozenNormAct(FrozenBatchNorm2d):
    """timm's BatchNormAct2d on fixed statistics: the norm, then `drop` and `act`, which stay modules of their own."""

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__(original)
        self.drop, self.act = original.drop, original.act

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate x (B, C, H, W)."""
        return self.act(self.drop(super().forward(x)))  # type: ignore[no-any-return, operator]


def is_norm_act(module: nn.Module) -> bool:
    """Whether a module is timm's norm with an activation inside."""
    return type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm.")


def freeze_norms(model: nn.Module, train: str = "none") -> list[str]:
    """Replace every BatchNorm2d of `model`, in place, by its frozen form; returns their names.

    Args:
        model: any module.
        train: which affine parameters of the norms require a gradient: ``"none"``, ``"bias"`` (still saves nothing) or
            ``"both"`` (each norm then saves its input).
    """
    if train not in ("none", "bias", "both"):
        raise ValueError(f"train is {train!r}; it is 'none', 'bias' or 'both'")
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and type(module) is nn.BatchNorm2d:
            frozen = FrozenBatchNorm2d(module)
            if module.affine:
                frozen.weight.requires_grad_(train == "both")
                frozen.bias.requires_grad_(train in ("bias", "both"))
            model.set_submodule(name, frozen)
            names.append(name)
    return names


def thaw_norms(model: nn.Module) -> None:
    """Undo `freeze_norms` in place; the norms keep the trained affine parameters and the untouched statistics."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, FrozenBatchNorm2d):
            model.set_submodule(name, module.original)

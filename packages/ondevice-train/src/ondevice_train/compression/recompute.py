"""Run a module again in the backward pass instead of keeping what is inside it, from an exact or an 8-bit input.

The exact form is torch's checkpoint. The 8-bit form keeps one byte an element of the input: it serves attention, whose
queries, keys, values and output cost four times its input. Its gradients carry the rounding error of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ondevice_train.compression.attention import self_attends, self_attention
from ondevice_train.compression.quantise import dequantise, quantise, quantised_bytes


def recompute_bytes(shape: tuple[int, ...], itemsize: int = 4) -> int:
    """Bytes of an 8-bit input; a row is the last dimension."""
    return quantised_bytes(math.prod(shape), math.prod(shape[:-1]), itemsize)


class _FromEightBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Any], x: Tensor, *parameters: Tensor) -> Any:
        wide = x if x.dtype == torch.float64 else x.float()
        ctx.rows, ctx.wide = x.numel() // x.shape[-1], wide.dtype
        ctx.run, ctx.shape, ctx.dtype = run, x.shape, x.dtype
        ctx.save_for_backward(quantise(wide, ctx.rows), *parameters)
        return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        packed, *parameters = ctx.saved_tensors
        x = dequantise(packed, ctx.rows, ctx.shape, ctx.wide).to(ctx.dtype).requires_grad_()
        wanted = [x, *[parameter for parameter in parameters if parameter.requires_grad]]
        with torch.enable_grad():
            y = ctx.run(x)
        found = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True))
        dx = next(found)
        return None, dx, *[next(found) if parameter.requires_grad else None for parameter in parameters]


class Recomputed:
    """The forward of one module instance, replaced; `install` puts it in, `remove` takes it out.

    Attributes:
        eight_bit: keep the input in 8 bits; used where the module has one tensor input and no active dropout, else exact.
    """

    def __init__(self, module: nn.Module, eight_bit: bool) -> None:
        self.module = module
        self.eight_bit = eight_bit

    def install(self) -> None:
        """Replace the forward of the module."""
        self.module.forward = self  # type: ignore[assignment]

    def remove(self) -> None:
        """Give the module the forward of its class back."""
        del self.module.forward

    def _random(self) -> bool:
        rates = [float(getattr(part, name, 0.0) or 0.0) for part in self.module.modules() for name in ("dropout", "p", "attention_dropout")
                 if not isinstance(getattr(part, name, 0.0), nn.Module)]  # fmt: skip
        return self.module.training and any(rate > 0 for rate in rates)

    def rounds(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call keeps its input in 8 bits."""
        tensors = {id(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()}
        return self.eight_bit and len(tensors) == 1 and not self._random()

    def _backward_follows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether anything is kept for this call at all: not below the shallowest layer that trains."""
        tensors = (*args, *kwargs.values(), *self.module.parameters())
        return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in tensors)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of the module."""
        forward = type(self.module).forward
        keeps, rounds = self._backward_follows(args, kwargs), self.rounds(args, kwargs)
        if rounds and self_attends(self.module, args, kwargs):
            return self_attention(self.module, args[0], keeps), None  # type: ignore[arg-type]
        if not keeps:
            return forward(self.module, *args, **kwargs)
        if not rounds:
            return checkpoint(lambda *inner, **named: forward(self.module, *inner, **named), *args, use_reentrant=False, **kwargs)
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point())
        tuples: list[bool] = []

        def run(x: Tensor) -> Tensor:
            replaced = [x if value is first else value for value in args]
            named = {key: x if value is first else value for key, value in kwargs.items()}
            result = forward(self.module, *replaced, **named)
            tuples.append(isinstance(result, tuple))
            return result[0] if isinstance(result, tuple) else result

        y = _FromEightBits.apply(run, first, *self.module.parameters())
        return (y, None) if tuples[0] else y


def recomputed(module: nn.Module) -> Recomputed | None:
    """The replaced forward of a module, if it has one."""
    forward = module.__dict__.get("forward")
    return forward if isinstance(forward, Recomputed) else None


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention layer as torch, torchvision and timm write them (by the name of its class)."""
    return "Attention" in type(module).__name__ and any(True for _ in module.parameters())

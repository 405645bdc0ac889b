"""Quantisation-aware scaling (Lin 2022): an int8 graph, its gradients on the scale of its fp32 counterpart.

An int8 weight stands for W = s_W · W̄, so that a plain step on W̄ is too small by s_W² (and a bias, kept on the scale s_W s_x,
by its square): G̃_W = G_W̄ · s_W^-2, G̃_b = G_b̄ · (s_W s_x)^-2. Scales of weights are one per output channel.

`prepare` makes the graph of any model: every convolution and linear layer but the head computes on int8 inputs, weights and outputs, with
the norm behind it folded in. The integers are held in floats, so that torch can train them: outputs are those of the int8 graph, bytes
are not; what the graph itself takes is the accounting ``mcunetv3``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from edge_shared.errors import InputError
from edge_shared.memory import measure
from edge_shared.trace import trace
from torch import Tensor, nn
from torch.nn import functional as F

from ondevice_train.methods import MethodOptions, Prepared
from ondevice_train.ops.frozen_norm import FrozenBatchNorm2d, freeze_norms, thaw_norms
from ondevice_train.ops.masks import pack, unpack

LOW, HIGH = -128, 127


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


class _RoundClamp(torch.autograd.Function):
    """clamp(round(x), -128, 127); the gradient passes where nothing was clamped. Saves one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rounded = x.detach().round()
        if ctx.needs_input_grad[0]:
            ctx.shape = x.shape
            ctx.save_for_backward(pack((rounded >= LOW) & (rounded <= HIGH)))
        return rounded.clamp_(LOW, HIGH)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (packed,) = ctx.saved_tensors
        return grad * unpack(packed, grad.numel()).view(ctx.shape)


class Grid:
    """Where the 256 levels of a tensor lie: value = scale · (level - zero); found from the extremes of what it is shown."""

    def __init__(self, range: Tensor) -> None:
        self.range = range  # (2,): lowest and highest value, a buffer of the layer

    def observe(self, x: Tensor) -> None:
        """Widen the range to x; 0 is always in it."""
        self.range.copy_(torch.stack((torch.minimum(self.range[0], x.detach().min()), torch.maximum(self.range[1], x.detach().max()))))

    @property
    def scale(self) -> float:
        """Width of a level."""
        low, high = self.range.tolist()
        return (high - low) / (HIGH - LOW) or 1.0

    @property
    def zero(self) -> int:
        """The level of 0."""
        return round(LOW - float(self.range[0]) / self.scale)

    def levels(self, x: Tensor) -> Tensor:
        """x as whole steps from 0."""
        return _RoundClamp.apply(x / self.scale + self.zero) - self.zero


class Int8Layer(nn.Module):
    """A convolution or linear layer of an int8 graph: y = s_y·⌊(s_W s_x (W̄ x̄ + b̄)) / s_y⌉, all in whole steps.

    Attributes:
        weight: W̄, whole numbers held in floats; trained ones move between them and are rounded in the forward pass.
        bias: b̄ on the scale s_W s_x, or None.
        scale: s_W (O,).
        observing: True while the grids of input and output are found.
        scaled: whether gradients are divided as QAS says.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor

    def __init__(self, original: nn.Conv2d | nn.Linear, norm: FrozenBatchNorm2d | None, scaled: bool = True) -> None:
        super().__init__()
        self._original: tuple[Any, FrozenBatchNorm2d | None] = (original, norm)
        with torch.no_grad():
            weight, bias = original.weight, original.bias
            if norm is not None:
                factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                weight = weight * _along_outputs(factor, weight)  # type: ignore[assignment]
                bias = norm.bias + ((0 if bias is None else bias) - norm.running_mean) * factor  # type: ignore[assignment]
            integers, scale = quantise_weight(weight)
        self.weight = nn.Parameter(integers)
        self.register_buffer("scale", scale)
        self.register_buffer("input_range", torch.zeros(2, device=scale.device))
        self.register_buffer("output_range", torch.zeros(2, device=scale.device))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.observing = True
        if scaled:
            self.weight.register_hook(lambda gradient: scale_weight_gradient(gradient, self.scale))
            if self.bias is not None:
                self.bias.register_hook(lambda gradient: scale_bias_gradient(gradient, self.scale, self.inputs.scale))

    @property
    def inputs(self) -> Grid:
        """The grid of x."""
        return Grid(self.get_buffer("input_range"))

    @property
    def outputs(self) -> Grid:
        """The grid of y."""
        return Grid(self.get_buffer("output_range"))

    @torch.no_grad()
    def settle(self) -> None:
        """End the observation: the bias becomes whole steps of s_W s_x."""
        self.observing = False
        if self.bias is not None:
            self.bias.copy_((self.bias / (self.scale * self.inputs.scale)).round())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to float x; the result lies on the grid of the output."""
        original = self._original[0]
        if self.observing:
            self.inputs.observe(x)
            y = _apply(original, x, self.weight * _along_outputs(self.scale, self.weight), self.bias)
            self.outputs.observe(y)
            return y
        rounded = _RoundClamp.apply(self.weight)
        bias = None if self.bias is None else self.bias + (self.bias.round() - self.bias).detach()
        steps = _apply(original, self.inputs.levels(x), rounded, bias)
        scale = self.scale * self.inputs.scale
        y = steps * (scale if isinstance(original, nn.Linear) else scale.view(-1, 1, 1))
        return self.outputs.levels(y) * self.outputs.scale

    @torch.no_grad()
    def to_float(self) -> nn.Module:
        """The torch layer with the trained values; those of a folded norm's bias go to the norm."""
        original, norm = self._original
        weight = self.weight.round().clamp(LOW, HIGH) * _along_outputs(self.scale, self.weight)
        bias = None if self.bias is None else self.bias.round() * self.scale * self.inputs.scale
        if norm is None:
            original.weight.copy_(weight)
            if bias is not None:
                original.bias.copy_(bias)
        else:
            assert bias is not None
            factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            original.weight.copy_(
                torch.where(_along_outputs(factor, weight) == 0, original.weight, weight / _along_outputs(factor, weight))
            )
            norm.bias.copy_(bias - ((0 if original.bias is None else original.bias) - norm.running_mean) * factor)
        return original  # type: ignore[no-any-return]


def _apply(original: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(original, nn.Linear):
        return F.linear(x, weight, bias)
    assert isinstance(original, nn.Conv2d)
    return F.conv2d(x, weight, bias, original.stride, original.padding, original.dilation, original.groups)


def int8_graph(model: nn.Module, batches: Iterable[Tensor], *, head: str = "", scaled: bool = True) -> dict[str, Int8Layer]:
    """Make `model` an int8 graph, in place: norms on fixed statistics, folded where a convolution is before them.

    Args:
        model: any module that torch.export can trace.
        batches: inputs that show the ranges of all tensors.
        head: the classifier, which stays in floats.
        scaled: divide gradients by s_W² and (s_W s_x)²; False shows what happens without.

    Returns:
        The layers by name; `to_float` undoes it.
    """
    from ondevice_train.selection.install import followed_alone, norms_after, supported

    batches = list(batches)
    network = trace(model.eval(), batches[0])
    folds = followed_alone(network, norms_after(network, dict(model.named_modules())))
    freeze_norms(model)
    layers: dict[str, Int8Layer] = {}
    for name, module in list(model.named_modules()):
        if name != head and type(module) in (nn.Conv2d, nn.Linear) and supported(module):
            norm = model.get_submodule(folds[name]) if name in folds else None
            layers[name] = Int8Layer(module, norm if isinstance(norm, FrozenBatchNorm2d) else None, scaled)  # type: ignore[arg-type]
            if isinstance(norm, FrozenBatchNorm2d):
                norm.absorbed = True
            model.set_submodule(name, layers[name])
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for layer in layers.values():
        layer.settle()
    return layers


def to_float(model: nn.Module, layers: dict[str, Int8Layer]) -> nn.Module:
    """Undo `int8_graph`, in place: plain torch layers that hold the values of the trained integers."""
    for name, layer in layers.items():
        model.set_submodule(name, layer.to_float())
    thaw_norms(model)
    return model


def prepare(model: nn.Module, example: Tensor, options: MethodOptions) -> Prepared:
    """The method ``qas`` of `fit`: weights and biases of the last layers of an int8 graph train, the head in floats.

    Options: ``scaled`` (True): QAS; False leaves the gradients of the integers as they are.
    """
    if unknown := set(options.options) - {"scaled"}:
        raise InputError(f"unknown option {sorted(unknown)[0]!r} of this method; known: scaled")
    layers = int8_graph(model, [example], head=options.head or "", scaled=bool(options.options.get("scaled", True)))
    trained = list(layers)[-options.last :] if options.last else list(layers)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for part in (*(layers[name] for name in trained), *([model.get_submodule(options.head)] if options.head else ())):
        for parameter in part.parameters():
            parameter.requires_grad_(True)
    model.train()

    def restore() -> None:
        to_float(model, layers)
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    return Prepared(measure.training_bytes(model, example).bytes, restore)

"""Image classifiers with a known bottleneck: the features before the last linear layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from edge_shared.errors import InputError
from torch import nn


class Unit(nn.Module):
    """Convolution 3x3, norm, ReLU."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.act = nn.ReLU()

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        return self.act(self.norm(self.conv(x_BCHW)))

    @property
    def gate_shape(self) -> tuple[int, ...]:
        """Shape of a gate on the output: one value a channel."""
        return (self.conv.out_channels, 1, 1)

    @torch.no_grad()
    def cut(self, keep: torch.Tensor, keep_in: torch.Tensor | None) -> None:
        """Keep these channels (and of the input those that the unit before kept); no channel at all: one that is always zero."""
        conv, norm = self.conv, self.norm
        if len(keep) == 0:
            keep = torch.tensor([0])
            norm.weight[0], norm.bias[0] = 0.0, 0.0
        weight = conv.weight[keep] if keep_in is None else conv.weight[keep][:, keep_in]
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, conv.stride, 1, bias=False)  # type: ignore[arg-type]
        self.conv.weight = nn.Parameter(weight.clone())
        self.norm = nn.BatchNorm2d(len(keep), eps=norm.eps)
        self.norm.load_state_dict({name: value[keep] if value.dim() else value for name, value in norm.state_dict().items()})


class Neurons(nn.Module):
    """Linear layer, ReLU."""

    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, out)
        self.act = nn.ReLU()

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B, D) to (B, D')."""
        return self.act(self.linear(x_BD))

    @property
    def gate_shape(self) -> tuple[int, ...]:
        """Shape of a gate on the output: one value a neuron."""
        return (self.linear.out_features,)

    @torch.no_grad()
    def cut(self, keep: torch.Tensor, keep_in: torch.Tensor | None) -> None:
        """Keep these neurons; none at all: one that is always zero."""
        if len(keep) == 0:
            keep = torch.tensor([0])
            self.linear.weight[0], self.linear.bias[0] = 0.0, 0.0
        self.linear = _linear(self.linear, keep, keep_in)


class SmallNet(nn.Module):
    """Four strided 3x3 convolutions (16, 32, 64, 128), global pooling, a linear classifier; 3-channel images.

    Spatial sizes of a 28-pixel input: 28, 14, 7, 7.
    """

    def __init__(self, classes: int, widths: tuple[int, ...] = (16, 32, 64, 128), in_channels: int = 3) -> None:
        super().__init__()
        units = []
        for index, (width, stride) in enumerate(zip(widths, (1, 2, 2, 1), strict=True)):
            units.append(Unit(widths[index - 1] if index else in_channels, width, stride))
        self.units = nn.Sequential(*units)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images to logits (B, classes)."""
        return self.head(self.flatten(self.pool(self.units(x_BCHW))))


class MlpNet(nn.Module):
    """Three hidden layers of 100 neurons on the pixels (the network of Multi-Color MNIST, DebiAN 2022), a linear classifier."""

    def __init__(self, classes: int, inputs: int, widths: tuple[int, ...] = (100, 100, 100)) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        sizes = (inputs, *widths)
        self.units = nn.Sequential(*(Neurons(*pair) for pair in zip(sizes, widths, strict=False)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images to logits (B, classes)."""
        return self.head(self.units(self.flatten(x_BCHW)))


def make(name: str, classes: int, seed: int, shape: tuple[int, int, int]) -> nn.Module:
    """A fresh network: ``small``, ``mlp``, or a torchvision classifier such as ``resnet18``.

    Args:
        name: which.
        classes: outputs.
        seed: of the weights.
        shape: (channels, height, width) of an image.

    Raises:
        InputError: for an unknown name.
    """
    torch.manual_seed(seed)
    if name == "small":
        return SmallNet(classes, in_channels=shape[0])
    if name == "mlp":
        return MlpNet(classes, math.prod(shape))
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"unknown model {name!r}; use small, mlp or a torchvision classifier such as resnet18")
    return torchvision.models.get_model(name, weights=None, num_classes=classes)


def head_of(model: nn.Module) -> nn.Linear:
    """The classifier: the last linear layer.

    Raises:
        InputError: if there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InputError(f"{type(model).__name__} has no linear layer; the bottleneck is the input of the last one")
    return layers[-1]


@contextmanager
def bottleneck(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While open, each forward pass puts the input of the classifier into the list, replacing the former one."""
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        caught[:] = [arguments[0]]

    hook = head_of(model).register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()


def gate_sites(model: nn.Module) -> list[Unit | Neurons]:
    """Where channel gates can stand so that a closed one removes the channel or neuron: the units of `SmallNet` and `MlpNet`.

    Raises:
        InputError: for another network.
    """
    if not isinstance(model, SmallNet | MlpNet):
        raise InputError(f"channel masks are for the networks small and mlp; {type(model).__name__} takes --granularity weights")
    return [unit for unit in model.units if isinstance(unit, Unit | Neurons)]


def extract(model: nn.Module, masks: Sequence[torch.Tensor]) -> nn.Module:
    """The physically smaller network of channel masks: every layer and the classifier lose the closed channels.

    A unit that would lose every channel keeps one that is always zero, so that outputs stay equal.
    """
    smaller = copy.deepcopy(model)
    units = gate_sites(smaller)
    assert isinstance(smaller, SmallNet | MlpNet)
    keep_in: torch.Tensor | None = None
    for unit, mask in zip(units, masks, strict=True):
        keep = mask.flatten().nonzero().flatten()
        unit.cut(keep, keep_in)
        keep_in = keep if len(keep) else torch.tensor([0])
    with torch.no_grad():
        smaller.head = _linear(smaller.head, torch.arange(smaller.head.out_features), keep_in)
    return smaller.train(model.training)


def _linear(layer: nn.Linear, keep: torch.Tensor, keep_in: torch.Tensor | None) -> nn.Linear:
    weight = layer.weight[keep] if keep_in is None else layer.weight[keep][:, keep_in]
    smaller = nn.Linear(weight.shape[1], weight.shape[0])
    smaller.weight, smaller.bias = nn.Parameter(weight.clone()), nn.Parameter(layer.bias[keep].clone())
    return smaller

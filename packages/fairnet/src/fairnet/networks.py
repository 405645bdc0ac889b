"""Image classifiers with a known bottleneck: the features before the last linear layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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


def make(name: str, classes: int, seed: int) -> nn.Module:
    """A fresh network: ``small``, or a torchvision classifier such as ``resnet18``.

    Raises:
        InputError: for an unknown name.
    """
    torch.manual_seed(seed)
    if name == "small":
        return SmallNet(classes)
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"unknown model {name!r}; use small or a torchvision classifier such as resnet18")
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


def channel_units(model: nn.Module) -> list[Unit]:
    """Where channel gates can stand so that a closed one removes the channel: the units of `SmallNet`.

    Raises:
        InputError: for another network.
    """
    if not isinstance(model, SmallNet):
        raise InputError(f"channel masks are for the small network; {type(model).__name__} takes --granularity weights")
    return [unit for unit in model.units if isinstance(unit, Unit)]


def extract(model: nn.Module, masks: list[torch.Tensor]) -> nn.Module:
    """The physically smaller network of channel masks: convolutions, norms and the classifier lose the closed channels.

    A unit that would lose every channel keeps its first one with zero scale and shift, so that outputs stay equal.
    """
    smaller = copy.deepcopy(model)
    units = channel_units(smaller)
    assert isinstance(smaller, SmallNet)
    kept_in: torch.Tensor | None = None
    for unit, mask in zip(units, masks, strict=True):
        keep = mask.flatten().nonzero().flatten()
        conv, norm = unit.conv, unit.norm
        if len(keep) == 0:
            keep = torch.tensor([0])
            with torch.no_grad():
                norm.weight[0], norm.bias[0] = 0.0, 0.0
        weight = conv.weight[keep] if kept_in is None else conv.weight[keep][:, kept_in]
        unit.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, conv.stride, 1, bias=False)  # type: ignore[arg-type]
        unit.conv.weight = nn.Parameter(weight.detach().clone())
        unit.norm = _norm_of(norm, keep)
        kept_in = keep
    assert kept_in is not None
    head = nn.Linear(len(kept_in), smaller.head.out_features)
    head.weight = nn.Parameter(smaller.head.weight[:, kept_in].detach().clone())
    head.bias = nn.Parameter(smaller.head.bias.detach().clone())
    smaller.head = head
    return smaller.train(model.training)


def _norm_of(norm: nn.BatchNorm2d, keep: torch.Tensor) -> nn.BatchNorm2d:
    smaller = nn.BatchNorm2d(len(keep), eps=norm.eps)
    state = {name: value[keep] if value.dim() else value for name, value in norm.state_dict().items()}
    smaller.load_state_dict(state)
    return smaller

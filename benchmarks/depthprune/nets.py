"""The two small networks of the studies: one of basic blocks (ResNet-like), one of inverted residuals (MobileNet-like)."""

from __future__ import annotations

import torch
from depthprune.models import Residual
from torch import Tensor, nn


class Basic(nn.Module):
    """Two 3x3 convolutions and a skip; an activation inside and one after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        return self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))) + self.skip(x))


class BasicNet(nn.Module):
    """A 3x3 stem, two basic blocks per width, global average pool, linear layer."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], stem_stride: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for index in range(2):
                blocks.append(Basic(inputs, width, 2 if index == 0 and stage > 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool, self.flatten, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, classes)."""
        return self.head(self.flatten(self.pool(self.blocks(self.stem(x)))))


def build(family: str, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """`resnet-like` or `mobilenet-like` for images of this shape; three stages and a strided stem above 16 pixels, else two and none."""
    large = shape[1] > 16
    widths, stride = ((16, 32, 64), 2) if large else ((16, 32), 1)
    torch.manual_seed(seed)
    if family == "resnet-like":
        return BasicNet(shape[0], classes, widths, stride)
    return Residual(shape[0], classes, widths, stem_stride=stride)

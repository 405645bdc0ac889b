"""The models that the commands know by name, and a small residual network made to be shortened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from edge_shared.errors import InputError
from torch import Tensor, nn

DEFAULT = "residual"


class Block(nn.Module):
    """Residual block: 1x1 expansion, depthwise 3x3, 1x1 projection, and an activation after the addition.

    Without its two inner activations the whole block, skip included, is one dense 3x3 convolution; the activation after the
    addition stays, so a fully shortened network is a plain convolutional one and not a linear map.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        middle = inputs * expand
        self.expand = nn.Conv2d(inputs, middle, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.project = nn.Conv2d(middle, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        y = self.relu1(self.norm1(self.expand(x)))
        y = self.relu2(self.norm2(self.depthwise(y)))
        return self.relu3(self.norm3(self.project(y)) + self.skip(x))


class Residual(nn.Module):
    """A small residual network for small images: a 3x3 stem, blocks in stages, global average pool, linear layer."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: tuple[int, ...] = (16, 32),
        depth: int = 2,
        expand: int = 6,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for index in range(depth):
                blocks.append(Block(inputs, width, 2 if index == 0 and stage > 0 else 1, expand))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, classes)."""
        x = self.blocks(self.relu(self.norm(self.stem(x))))
        return self.head(self.flatten(self.pool(x)))


def names() -> list[str]:
    """Models known by name: ours, and the architectures of the shared core."""
    from edge_shared import architectures

    return [DEFAULT, *architectures.names()]


def build(name: str, shape: tuple[int, int, int], classes: int, seed: int = 0) -> nn.Module:
    """A model by name, or one saved in a folder (`model.safetensors` and `recipe.json`).

    Args:
        name: a name or a folder.
        shape: (channels, height, width) of its input.
        classes: outputs.
        seed: of its first weights.

    Raises:
        InputError: unknown name, or a folder that holds no model.
    """
    if Path(name).is_dir():
        from edge_shared.artifacts import load_model

        return load_model(Path(name))
    channels, height, _ = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == DEFAULT:
            large = height > 16
            widths = (16, 32, 64) if large else (16, 32)
            return Residual(channels, classes, widths, stem_stride=2 if large else 1)
        from edge_shared import architectures

        if name not in architectures.names():
            raise InputError(f"--model {name}: no such folder and no such model; known are {', '.join(names())}")
        return architectures.module(name, resolution=height, classes=classes, in_channels=channels)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Load weights by name; a classifier for another number of classes keeps its fresh ones.

    Returns:
        Parameters that were not loaded because their shape differs.

    Raises:
        InputError: if the names do not fit the model.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"--weights {source}: no {missing[0]!r} in it ({len(missing)} of {len(own)} tensors missing): weights of another model?"
        )
    other = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    last = {name.rpartition(".")[0] for name in list(own)[-2:]}
    wrong = [name for name in other if name.rpartition(".")[0] not in last]
    if wrong:
        raise InputError(
            f"--weights {source}: {wrong[0]!r} has shape {tuple(weights[wrong[0]].shape)}, the model needs {tuple(own[wrong[0]].shape)}"
        )
    model.load_state_dict({name: value for name, value in weights.items() if name in own and name not in other}, strict=False)
    return other

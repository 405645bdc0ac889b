"""The mobile family as a torch module; layer names equal those of `edge_shared.architectures.mobile.network`."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from edge_shared.architectures.mobile import Block, MobileConfig, make_divisible

_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
}


def _unit(
    channels: int, out: int, kernel: int, act: str | None, *, stride: int = 1, groups: int = 1, norm: bool = True, bn: bool = True
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=norm and not bn)
    if norm and bn:
        layers["bn"] = nn.BatchNorm2d(out)
    if act:
        layers["act"] = _ACTIVATIONS[act]()
    return nn.Sequential(layers)


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled map; hidden width a quarter, rounded to 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = make_divisible(channels // 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = nn.ReLU(inplace=True)
        self.excite = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape."""
        return x_BCHW * self.gate(self.excite(self.act(self.reduce(self.pool(x_BCHW)))))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, squeeze-excite, project 1x1, skip."""

    def __init__(self, channels: int, block: Block, act: str, bn: bool) -> None:
        super().__init__()
        middle = block.middle(channels)
        self.has_skip = block.stride == 1 and channels == block.out
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if block.expands(channels):
            layers["expand"] = _unit(channels, middle, 1, act, bn=bn)
        layers["depthwise"] = _unit(middle, middle, block.kernel, act, stride=block.stride, groups=middle, bn=bn)
        if block.se:
            layers["se"] = SqueezeExcite(middle)
        layers["project"] = _unit(middle, block.out, 1, None, bn=bn)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.steps = tuple(layers)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        y_BCHW = x_BCHW
        for name in self.steps:
            y_BCHW = getattr(self, name)(y_BCHW)
        return y_BCHW + x_BCHW if self.has_skip else y_BCHW


class MobileNet(nn.Module):
    """The network of a `MobileConfig`."""

    def __init__(self, config: MobileConfig) -> None:
        super().__init__()
        bn = config.bn
        self.stem = _unit(config.in_channels, config.stem.out, config.stem.kernel, config.act, stride=config.stem.stride, bn=bn)
        channels = config.stem.out
        blocks = []
        for block in config.blocks:
            blocks.append(InvertedResidual(channels, block, block.act or config.act, bn))
            channels = block.out
        self.blocks = nn.Sequential(*blocks)
        if config.final_expand:
            self.final_expand = _unit(channels, config.final_expand, 1, config.act, bn=bn)
            channels = config.final_expand
        if config.feature_mix:
            self.feature_mix = _unit(channels, config.feature_mix, 1, config.act, norm=config.feature_mix_bn, bn=bn)
            channels = config.feature_mix
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, config.classes)
        self.has_final_expand = bool(config.final_expand)
        self.has_feature_mix = bool(config.feature_mix)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        x_BCHW = self.blocks(self.stem(x_BCHW))
        if self.has_final_expand:
            x_BCHW = self.final_expand(x_BCHW)
        if self.has_feature_mix and not self.has_final_expand:
            x_BCHW = self.feature_mix(x_BCHW)
        x_BC11 = self.pool(x_BCHW)
        if self.has_feature_mix and self.has_final_expand:
            x_BC11 = self.feature_mix(x_BC11)
        return self.classifier(torch.flatten(x_BC11, 1))

"""The supernet of a space: the weights of its largest network, of which every other network uses a part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moofa.space import Choice, Space, middle
from moofa.supernet.layers import ACTIVATIONS, ElasticDepthwise, ElasticNorm, ElasticPointwise, ElasticSqueezeExcite


class ElasticBlock(nn.Module):
    """Inverted residual block whose kernel and expansion are chosen per call.

    With expansion 1 the input itself goes through the first `channels` depthwise filters; there is no expansion
    convolution, here as in the extracted network.
    """

    def __init__(
        self, channels: int, out: int, kernels: tuple[int, ...], expands: tuple[float, ...], stride: int, se: bool, activation: str
    ):
        super().__init__()
        self.channels = channels
        self.expands = expands
        self.activation = activation
        self.has_skip = stride == 1 and channels == out
        widest = middle(channels, expands[-1])
        if expands[-1] != 1:
            self.expand = ElasticPointwise(channels, widest)
            self.expand_norm = ElasticNorm(widest)
        self.depthwise = ElasticDepthwise(widest, kernels, stride)
        self.depthwise_norm = ElasticNorm(widest)
        self.se = ElasticSqueezeExcite(widest) if se else None
        self.project = ElasticPointwise(widest, out)
        self.project_norm = ElasticNorm(out)
        self.out = out

    def forward(self, x_BCHW: Tensor, kernel: int, expand: float) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        act = ACTIVATIONS[self.activation]
        y = x_BCHW
        if expand != 1:
            y = act(self.expand_norm(self.expand(y, middle(self.channels, expand))))
        y = act(self.depthwise_norm(self.depthwise(y, kernel)))
        if self.se is not None:
            y = self.se(y)
        y = self.project_norm(self.project(y, self.out))
        return y + x_BCHW if self.has_skip else y


class Unit(nn.Module):
    """A plain convolution with norm and activation."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, activation: str, norm: bool = True):
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.norm = ElasticNorm(out) if norm else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        y = self.conv(x_BCHW)
        return ACTIVATIONS[self.activation](y if self.norm is None else self.norm(y))


class Supernet(nn.Module):
    """All networks of a `space` in one set of weights.

    Attributes:
        space: the space.
        choice: the network that `forward` computes unless told otherwise; the largest at first.
        steps: training steps taken (a buffer, so that a checkpoint knows which networks come next).
    """

    steps: Tensor

    def __init__(self, space: Space):
        super().__init__()
        self.space = space
        self.choice: Choice = space.largest()
        self.stem = Unit(space.in_channels, space.stem.out, space.stem.kernel, space.stem.stride, space.activation)
        channels = space.stem.out
        self.first: ElasticBlock | None = None
        if fixed := space.first:
            self.first = ElasticBlock(channels, fixed.out, (fixed.kernel,), (fixed.expand,), fixed.stride, fixed.se, fixed.activation)
            channels = fixed.out
        stages = []
        for stage in space.stages:
            blocks = nn.ModuleList()
            for index in range(stage.depths[-1]):
                stride = stage.stride if index == 0 else 1
                blocks.append(ElasticBlock(channels, stage.width, stage.kernels, stage.expands, stride, stage.se, stage.activation))
                channels = stage.width
            stages.append(blocks)
        self.stages = nn.ModuleList(stages)
        self.final_expand: Unit | None = None
        if space.final_expand:
            self.final_expand = Unit(channels, space.final_expand, 1, 1, space.activation)
            channels = space.final_expand
        self.feature_mix: Unit | None = None
        if space.feature_mix:
            self.feature_mix = Unit(channels, space.feature_mix, 1, 1, space.activation, norm=space.feature_mix_bn)
            channels = space.feature_mix
        self.classifier = nn.Linear(channels, space.classes)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BCHW: Tensor, choice: Choice | None = None) -> Tensor:
        """Images (B, C, H, W) of any size to logits (B, classes) of one network, at that network's resolution.

        Args:
            x_BCHW: images; resized (bilinear, antialiased) to the choice's resolution if they differ from it.
            choice: the network; `self.choice` if omitted.
        """
        choice = choice or self.choice
        y = self.stem(resize(x_BCHW, choice.resolution))
        if self.first is not None and self.space.first is not None:
            y = self.first(y, self.space.first.kernel, self.space.first.expand)
        for blocks, chosen in zip(self.stages, choice.stages, strict=True):
            # zip stops at the choice's depth: later blocks of the stage are skipped.
            for block, (kernel, expand) in zip(blocks, chosen, strict=False):  # type: ignore[call-overload]
                y = block(y, kernel, expand)
        if self.final_expand is not None:
            y = self.final_expand(y)
        if self.feature_mix is not None and self.final_expand is None:
            y = self.feature_mix(y)
        y = y.mean((2, 3), keepdim=True)
        if self.feature_mix is not None and self.final_expand is not None:
            y = self.feature_mix(y)
        y = F.dropout(y.flatten(1), self.space.dropout, self.training)
        return self.classifier(y)


def resize(x_BCHW: Tensor, resolution: int) -> Tensor:
    """Images at `resolution` pixels; the tensor itself if it already is."""
    if x_BCHW.shape[-2:] == (resolution, resolution):
        return x_BCHW
    return F.interpolate(x_BCHW, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)

"""ResNet-18/34/50 tables (He 2016, torchvision's variant: the stride of a bottleneck is in its 3x3)."""

from __future__ import annotations

from edge_shared.architectures._builder import NetworkBuilder
from edge_shared.network import Network

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def network(name: str, *, resolution: int = 224, classes: int = 1000, in_channels: int = 3) -> Network:
    """The network with batch 1; layer names are torchvision's module names."""
    build = NetworkBuilder(name, (1, in_channels, resolution, resolution))
    bottleneck = name == "resnet50"

    def unit(x: str, out: int, kernel: int, conv: str, norm: str, act: str | None, *, stride: int = 1) -> str:
        x = build.norm(build.conv(x, out, kernel, conv, stride=stride), norm)
        return build.activation(x, "relu", act) if act else x

    x = unit("input", 64, 7, "conv1", "bn1", "relu", stride=2)
    x = build.pool(x, "max_pool2d", "maxpool", kernel=3, stride=2, padding=1)
    channels = 64
    for stage, depth in enumerate(DEPTHS[name]):
        width = 64 * 2**stage
        out = width * 4 if bottleneck else width
        for index in range(depth):
            p, stride, skip = f"layer{stage + 1}.{index}", 2 if stage and not index else 1, x
            steps = ((width, 1, 1), (width, 3, stride), (out, 1, 1)) if bottleneck else ((width, 3, stride), (width, 3, 1))
            for number, (wide, kernel, step) in enumerate(steps, 1):
                act = f"{p}.relu.{number}" if number < len(steps) else None
                x = unit(x, wide, kernel, f"{p}.conv{number}", f"{p}.bn{number}", act, stride=step)
            if stride != 1 or channels != out:
                skip = unit(skip, out, 1, f"{p}.downsample.0", f"{p}.downsample.1", None, stride=stride)
            x = build.combine("add", x, skip, f"{p}.add", in_place=True)
            x = build.activation(x, "relu", f"{p}.relu.{len(steps)}")
            channels = out
    x = build.flatten(build.pool(x, "adaptive_avg_pool2d", "avgpool"), "flatten")
    return build.build(build.linear(x, classes, "fc"))

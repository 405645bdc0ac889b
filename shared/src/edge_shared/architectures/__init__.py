"""Published architectures as data (`network`, no torch) and as torch modules (`module`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_shared.architectures import mobile, resnet, zoo
from edge_shared.errors import InputError
from edge_shared.network import Network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["mobile", "module", "names", "network", "resnet", "zoo"]


def names() -> tuple[str, ...]:
    """Names that `network` and `module` take; ``mobilenet_v2-w0.75`` gives any width."""
    return ("mobilenet_v2", *zoo.NAMES, *resnet.DEPTHS)


def _config(name: str, width: float | None, resolution: int | None, classes: int, in_channels: int) -> mobile.MobileConfig | None:
    if name.startswith("mobilenet_v2"):
        suffix = name.removeprefix("mobilenet_v2")
        try:
            width = float(suffix.removeprefix("-w")) if suffix else 1.0 if width is None else width
        except ValueError:
            raise InputError(f"unknown architecture {name!r}; MobileNetV2 widths are written mobilenet_v2-w0.75") from None
        if not 0 < width <= 8:
            raise InputError(f"width {width} is out of range; a width multiplier lies in (0, 8]")
        return zoo.mobilenet_v2(width, resolution=resolution or 224, classes=classes, in_channels=in_channels)
    if name in zoo.NAMES:
        return zoo.config(name, resolution=resolution, classes=classes, in_channels=in_channels)
    if name in resnet.DEPTHS:
        return None
    raise InputError(f"unknown architecture {name!r}; known: {', '.join(names())}")


def network(name: str, *, width: float | None = None, resolution: int | None = None, classes: int = 1000, in_channels: int = 3) -> Network:
    """A published architecture as a `Network` of batch 1, without torch.

    Args:
        name: one of `names`.
        width: MobileNetV2's width multiplier.
        resolution: input pixels; the published one if omitted (224 for MobileNetV2 and ResNets).
        classes: outputs of the classifier.
        in_channels: channels of the input.

    Raises:
        InputError: for an unknown name.
    """
    if resolution is not None and not 1 <= resolution <= 8192:
        raise InputError(f"resolution {resolution} is out of range; it is a number of pixels from 1 to 8192")
    config = _config(name, width, resolution, classes, in_channels)
    if config is None:
        return resnet.network(name, resolution=resolution or 224, classes=classes, in_channels=in_channels)
    return mobile.network(config)


def module(name: str, *, width: float | None = None, resolution: int | None = None, classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """The same architecture as a torch module with fresh weights.

    ``mobilenet_v2`` of width 1 and the ResNets are torchvision's modules where the input has three channels, so that their
    weights load.
    """
    config = _config(name, width, resolution, classes, in_channels)
    if in_channels == 3 and (config is None or name == "mobilenet_v2"):
        import torchvision

        options = {} if config is None or width is None else {"width_mult": width}
        return torchvision.models.get_model(name, num_classes=classes, weights=None, **options)
    if config is None:
        raise InputError(f"{name} takes three input channels, not {in_channels}")
    return mobile.module(config)

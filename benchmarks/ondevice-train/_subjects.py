"""Models and images that several of these studies share."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
DATA = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "vision"
WEIGHTS = DATA / "weights" / "mobilenet_v2-b0353104.pth"


def imagenet_mobilenet(classes: int | None = None) -> tuple[nn.Module, str]:
    """MobileNetV2 of torchvision with ImageNet weights where the file is there; a fresh head if `classes` is given."""
    import torchvision

    model = torchvision.models.mobilenet_v2()
    found = WEIGHTS.exists()
    if found:
        model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    if classes is not None:
        model.classifier[1] = nn.Linear(1280, classes)
        nn.init.normal_(model.classifier[1].weight, 0, 0.01)
        nn.init.zeros_(model.classifier[1].bias)
    return model, "torchvision IMAGENET1K_V1" if found else "random"


def small_vit(size: int) -> nn.Module:
    """A ViT of 6 blocks, 192 wide, patches of 1/8 of the side: 65 tokens at any size."""
    import torchvision

    return torchvision.models.VisionTransformer(size, size // 8, 6, 3, 192, 768, num_classes=10)


def subject(name: str, size: int) -> tuple[nn.Module, str]:
    """A model by name and where its weights are from."""
    if name == "mobilenet_v2":
        return imagenet_mobilenet()
    if name == "vit-6x192":
        return small_vit(size), "random"
    import torchvision

    return torchvision.models.get_model(name, num_classes=10), "random"


def cifar(size: int, limit: int | None = None):
    """CIFAR-10 from the JPEG archive, or the bundled digits without it."""
    from edge_shared.data.vision import load_images

    path = DATA / "cifar10_jpeg_train.npz"
    return load_images(str(path) if path.exists() else "digits", size=size, limit=limit)

"""The models that can be fine-tuned: by name (tables, torchvision, timm) or from a model folder, with weights from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from edge_shared import architectures
from edge_shared.artifacts import load_artifact, load_weights
from edge_shared.errors import InputError, require
from edge_shared.files import read_json
from edge_shared.trace import trace
from torch import nn

from ondevice_train.selection.install import find_head


def build(name: str, *, classes: int, size: int, weights: str | Path | None = None, seed: int = 0) -> tuple[nn.Module, str]:
    """A model with a classifier of `classes` outputs.

    Args:
        name: an architecture of `edge_shared.architectures`, a torchvision classifier, ``timm:NAME``, or a folder that
            `edge_shared.artifacts.save_model` wrote.
        classes: outputs. A head of another width is replaced by a fresh one.
        size: side of the input in pixels.
        weights: a state dict (safetensors, or torch with weights_only); a head that does not fit is left out.
        seed: of fresh weights.

    Returns:
        The model and the qualified name of its head.

    Raises:
        InputError: unknown name, or weights of another architecture.
    """
    torch.manual_seed(seed)
    channels = input_channels(name)
    if Path(name).is_dir():
        model = load_artifact(name).model
    elif name.startswith("timm:"):
        require("timm", "edge-shared[torch]")
        model = _timm(name[5:], **_timm_arguments(name[5:], classes, size))
    elif name in architectures.names() or name.startswith("mobilenet_v2"):
        model = architectures.module(name, classes=classes, resolution=size)
    else:
        import torchvision

        if name not in torchvision.models.list_models(module=torchvision.models):
            known = ", ".join(architectures.names())
            raise InputError(f"--model {name}: unknown; give one of {known}, a torchvision classifier, timm:NAME or a model folder")
        # Auxiliary classifiers would train on a loss of their own; the sizes of ViTs are fixed when they are made.
        extra: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("vit_"):
            extra = {"image_size": size}
        model = _made(name, lambda: torchvision.models.get_model(name, weights=None, num_classes=classes, **extra))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    head = find_head(model, trace(model.eval(), torch.zeros(2, channels, size, size)))
    layer = model.get_submodule(head)
    if isinstance(layer, nn.Linear) and layer.out_features != classes:
        model.set_submodule(head, nn.Linear(layer.in_features, classes))
    elif isinstance(layer, nn.Conv2d) and layer.out_channels != classes:
        raise InputError(f"--model {name}: its head is a convolution of {layer.out_channels} outputs; the data has {classes} classes")
    if weights is not None:
        _load(model, head, load_weights(weights), f"--weights {weights}")
    return model.train(), head


def builder(name: str, *, classes: int, size: int) -> dict[str, Any] | None:
    """How `edge_shared.artifacts.save_model` writes the model down: timm's by name and arguments (few of them can be traced), others as graphs."""
    if name.startswith("timm:"):
        return {"library": "timm", "name": name[5:], "arguments": _timm_arguments(name[5:], classes, size)}
    if Path(name).is_dir() and (found := read_json(Path(name) / "recipe.json", "recipe").get("builder")):
        return {**found, "arguments": {**found.get("arguments", {}), "num_classes": classes}}
    return None


def _timm_arguments(name: str, classes: int, size: int) -> dict[str, Any]:
    import timm

    if name not in timm.list_models():
        raise InputError(f"--model timm:{name}: timm has no such model")
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size and config.input_size[1] != size
    return {"num_classes": classes, **({"img_size": size} if fixed else {})}


def _timm(name: str, **arguments: Any) -> nn.Module:
    import timm

    try:
        model = _made(f"timm:{name}", lambda: timm.create_model(name, pretrained=False, **arguments))
    except TypeError as error:
        raise InputError(f"--model timm:{name} does not take images of {arguments.get('img_size')} pixels") from error
    for module in model.modules():
        if type(module) is timm.layers.Linear:  # torch's own but for TorchScript; methods know torch's
            module.__class__ = nn.Linear  # type: ignore[assignment]
    return model


def _made(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"--model {name} cannot be made for this image size: {' '.join(str(error).split())[:160]}") from error


def input_channels(name: str) -> int:
    """Channels of the images that a model takes: those that a model folder was saved with, 3 for a model given by name."""
    return load_artifact(name).input_shape[1] if Path(name).is_dir() else 3


@torch.no_grad()
def calibrate_norms(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the statistics of every BatchNorm to the mean over `batches` of inputs: fresh weights have none worth freezing."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    for inputs in batches:
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)


def _load(model: nn.Module, head: str, state: dict[str, torch.Tensor], where: str) -> None:
    own = model.state_dict()
    inside = f"{head}."
    fits = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    for name in own:
        if name not in fits and not name.startswith(inside) and not name.endswith("num_batches_tracked"):
            got = f"has shape {tuple(state[name].shape)} there, {tuple(own[name].shape)} here" if name in state else "is missing there"
            raise InputError(f"{where}: weights of another architecture: {name} {got}")
    model.load_state_dict({**own, **fits})

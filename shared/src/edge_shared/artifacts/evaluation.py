"""Running a model as it would be deployed: on the CPU, in evaluation mode, one tensor in and one out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from edge_shared.errors import InputError


@contextmanager
def on_cpu_in_eval(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is on the CPU and in evaluation mode; then it is as before."""
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in model.modules()}
    model.cpu().eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        model.to(home)


@torch.no_grad()
def one_output(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The output for `inputs`.

    Raises:
        InputError: if the model cannot take them, or gives anything but one tensor.
    """
    try:
        output = model(inputs.clone())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{type(model).__name__} cannot take an input of shape {tuple(inputs.shape)} ({reason})") from error
    if not isinstance(output, torch.Tensor):
        raise InputError(f"{type(model).__name__} gives a {type(output).__name__}; wrap it so that it gives one tensor")
    return output

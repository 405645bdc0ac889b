"""Weight masks that stay zero through momentum and weight decay."""

from __future__ import annotations

import torch
from edge_shared.errors import InputError
from torch import Tensor, nn


@torch.no_grad()
def apply(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Set masked weights to exactly 0; call it after every optimizer step.

    Raises:
        InputError: if the masks belong to another model.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            got = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise InputError(f"mask {name!r} of shape {tuple(mask.shape)} does not fit the model ({got}): masks of another model?")
        parameters[name].mul_(mask.to(parameters[name].device))


def prune_smallest(weight: Tensor, mask: Tensor | None, amount: int) -> Tensor:
    """Mask the `amount` smallest-magnitude weights that are left; earlier zeros stay masked (ties: the earlier index).

    Returns:
        A float mask of the shape of `weight`.
    """
    flat = torch.ones(weight.numel(), device=weight.device) if mask is None else mask.flatten().clone()
    alive = flat.nonzero().flatten()
    order = weight.detach().abs().flatten()[alive].argsort(stable=True)
    flat[alive[order[:amount]]] = 0.0
    return flat.reshape(weight.shape)

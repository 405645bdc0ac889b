"""Take an activation out of a captured graph: by identity, by its sign per neuron, or by the best affine map."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal

import torch
from edge_shared.errors import InputError
from torch import Tensor, fx, nn

from depthprune.capture import module_of, sites
from depthprune.entropy import target

How = Literal["identity", "sign", "affine"]


class ChannelAffine(nn.Module):
    """``a*x + c`` per channel, fixed: what stands in place of a removed activation until it is folded into a layer.

    Fixed buffers, so a removed (a = c = 0) channel gives exactly 0 whatever fine-tuning does to the layers before it.
    """

    a: Tensor
    c: Tensor

    def __init__(self, a: Tensor, c: Tensor, axis: int, ndim: int) -> None:
        super().__init__()
        self.axis, self.ndim = axis, ndim
        self.register_buffer("a", a.detach().clone())
        self.register_buffer("c", c.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x with the channels on `axis`."""
        view = [1] * self.ndim
        view[self.axis] = -1
        return x * self.a.reshape(view) + self.c.reshape(view)


@dataclass(frozen=True)
class Removal:
    """One activation that was taken out: what to replay on a fresh graph before its weights are loaded.

    Attributes:
        site: name of the call site.
        how: identity, sign or affine.
    """

    site: str
    how: How


def remove(gm: fx.GraphModule, site: str, how: How = "identity", a: Tensor | None = None, c: Tensor | None = None) -> Removal:
    """Replace the activation at a call site; the other calls of a shared module stay.

    Args:
        gm: captured graph, changed in place.
        site: name of the call site.
        how: `identity`; `sign` (multiply by a in {0, 1}: OFF neurons become exactly 0, or the constant c); `affine` (a*z + c).
        a: (C,) factors; ones if not given.
        c: (C,) constants; zeros if not given.

    Raises:
        InputError: if there is no such activation, or factors of another size.
    """
    found = next((s for s in sites(gm) if s.name == site), None)
    if found is None:
        target(gm, site)  # names what there is
        raise InputError(f"the activation {site!r} is removed already")
    module: nn.Module = nn.Identity()
    if how != "identity":
        a = torch.ones(found.channels) if a is None else a.float()
        c = torch.zeros(found.channels) if c is None else c.float()
        if a.shape != (found.channels,) or c.shape != (found.channels,):
            raise InputError(f"{site} has {found.channels} neurons, the replacement {tuple(a.shape)}: masks of another model?")
        if how == "sign" and not bool(((a == 0) | (a == 1)).all() and (c[a == 1] == 0).all()):
            raise InputError(f"{site}: a sign replacement has factors 0 and 1, and a constant only where the factor is 0")
        module = ChannelAffine(a, c, found.channel_axis, len(found.shape))
    path = target(gm, site)
    module.train(gm.training)
    device = next((p.device for p in gm.parameters()), torch.device("cpu"))
    parent, _, name = path.rpartition(".")
    setattr(gm.get_submodule(parent), name, module.to(device))
    return Removal(site, how)


def producer(gm: fx.GraphModule, site: str) -> tuple[fx.Node | None, bool]:
    """The convolution or linear node that feeds an activation, and whether only a norm (or nothing) stands between.

    Through an addition the first branch that comes from a layer counts (the residual branch, not the skip).
    """
    node = next(n for n in gm.graph.nodes if n.meta.get("site") == site)
    return _layer_behind(gm, node.args[0], True)


def _layer_behind(gm: fx.GraphModule, node: object, direct: bool) -> tuple[fx.Node | None, bool]:
    while isinstance(node, fx.Node):
        module = module_of(gm, node)
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            return node, direct
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.Dropout | nn.Identity):
            node = node.args[0]
            continue
        if is_add(node):
            for argument in node.args:
                found, _ = _layer_behind(gm, argument, False)
                if found is not None:
                    return found, False
        break
    return None, False


def is_add(node: object) -> bool:
    """Whether a node adds two tensors, unscaled."""

    if not isinstance(node, fx.Node) or node.kwargs or len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args):
        return False
    return node.target in (operator.add, operator.iadd, torch.add, "add", "add_")

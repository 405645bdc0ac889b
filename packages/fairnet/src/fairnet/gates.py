"""Gates on a frozen network (FFW, ECCV 2024): one per weight or one per output channel or neuron, with a temperature.

m(w) = min(1, 2 sigmoid(w / tau)): exactly 1 for w >= 0, in (0, 1) below, a hard 0/1 step as tau goes to 0. The backward pass uses
the derivative of the unclipped function on both sides, so that an open gate can still close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from edge_shared.errors import InputError
from torch import nn
from torch.nn.utils import parametrize

Granularity = Literal["weights", "channels"]


class _TwoSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, tau: float) -> torch.Tensor:
        half = torch.sigmoid(gate / tau)
        ctx.save_for_backward(half)
        ctx.tau = tau
        return (2 * half).clamp_max(1.0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (half,) = ctx.saved_tensors
        return grads[0] * 2 * half * (1 - half) / ctx.tau, None


def two_sigmoid(gate: torch.Tensor, tau: float) -> torch.Tensor:
    """The gate's value m(w) at temperature `tau`."""
    result: torch.Tensor = _TwoSigmoid.apply(gate, tau)
    return result


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, tau: float) -> torch.Tensor:
        soft = torch.sigmoid(gate / tau)
        ctx.save_for_backward(soft)
        ctx.tau = tau
        return (soft >= 0.5).to(gate.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (soft,) = ctx.saved_tensors
        return grads[0] * soft * (1 - soft) / ctx.tau, None


def threshold(gate: torch.Tensor, tau: float) -> torch.Tensor:
    """A hard gate (BISE, CVPR 2026): 1 where sigmoid(gate / tau) >= 0.5, else 0; backward as if it were the sigmoid."""
    result: torch.Tensor = _Threshold.apply(gate, tau)
    return result


class Gate(nn.Module):
    """Multiplies what it is given by m(gate), or by the hard mask gate >= 0; starts fully open (gate 0)."""

    def __init__(self, shape: tuple[int, ...], straight_through: bool = False) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(shape))
        self.rule = threshold if straight_through else two_sigmoid
        self.tau = 1.0
        self.hard = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The gated tensor, of the same shape."""
        return x * ((self.gate >= 0).to(x.dtype) if self.hard else self.rule(self.gate, self.tau))


class GatedNetwork:
    """A frozen network with gates; `model` runs with them. `close` removes them again, leaving every weight as it was.

    Args:
        model: a network in evaluation mode; its parameters are frozen here.
        granularity: ``weights`` gates each weight of convolutions and linear layers (biases and norms never); ``channels``
            gates each output channel of the layers in `sites`.
        sites: for ``channels``, modules behind whose output a gate stands, and its shape: (C, 1, 1) for maps, (D,) for neurons.
        straight_through: gates that are hard all the time, see `threshold`.
    """

    def __init__(
        self,
        model: nn.Module,
        granularity: Granularity,
        sites: Sequence[tuple[nn.Module, tuple[int, ...]]] = (),
        straight_through: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.granularity = granularity
        self.gates: list[Gate] = []
        self._hooks: list[Any] = []
        self._owners: list[nn.Module] = []
        if granularity == "weights":
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    gate = Gate(tuple(module.weight.shape), straight_through).to(module.weight.device)
                    parametrize.register_parametrization(module, "weight", gate)
                    self.gates.append(gate)
                    self._owners.append(module)
        else:
            for site, shape in sites:
                gate = Gate(shape, straight_through)
                self._hooks.append(site.register_forward_hook(lambda module, args, output, gate=gate: gate(output)))
                self.gates.append(gate)
        if not self.gates:
            raise InputError("the network has no place to put gates on")

    def parameters(self) -> list[nn.Parameter]:
        """The gates."""
        return [gate.gate for gate in self.gates]

    def set(self, *, tau: float | None = None, hard: bool | None = None) -> None:
        """Set the temperature, and whether masks are hard."""
        for gate in self.gates:
            gate.tau = gate.tau if tau is None else tau
            gate.hard = gate.hard if hard is None else hard

    def masks(self) -> list[torch.Tensor]:
        """The hard masks: True where kept."""
        return [(gate.gate.detach() >= 0).clone() for gate in self.gates]

    def load_masks(self, masks: list[torch.Tensor]) -> None:
        """Set gates to +1 where the mask keeps and to -1 where it cuts."""
        with torch.no_grad():
            for gate, mask in zip(self.gates, masks, strict=True):
                gate.gate.copy_(torch.where(mask, 1.0, -1.0))

    def kept_share(self) -> float:
        """Share of the gates that are open."""
        masks = self.masks()
        return float(sum(mask.sum() for mask in masks)) / sum(mask.numel() for mask in masks)

    def close(self) -> nn.Module:
        """Take the gates off and return the network as it was."""
        for hook in self._hooks:
            hook.remove()
        for owner in self._owners:
            parametrize.remove_parametrizations(owner, "weight", leave_parametrized=False)
        return self.model

"""Means, variances and the affine fit of an activation, per neuron, over all batches, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from edge_shared.errors import InputError
from edge_shared.evaluating import evaluating
from torch import Tensor, fx, nn

from depthprune.capture import Site, sites
from depthprune.entropy import images_of, target


@dataclass(eq=False)
class Moments:
    """Sums over n values per neuron, centred on the first batch's mean so that variances keep their digits.

    z is the input of the activation, y = phi(z) its output; all tensors (C,), float64.
    """

    n: int = 0
    origin: Tensor | None = None
    z: Tensor | float = 0.0
    zz: Tensor | float = 0.0
    y: Tensor | float = 0.0
    yy: Tensor | float = 0.0
    zy: Tensor | float = 0.0

    def add(self, z: Tensor, y: Tensor, axis: int) -> None:
        """Add a batch of inputs and outputs with the neurons on `axis`."""
        z_NC, y_NC = (t.detach().movedim(axis, -1).flatten(0, -2).double() for t in (z, y))
        if self.origin is None:
            self.origin = z_NC.mean(0)
        z_NC, y_NC = z_NC - self.origin, y_NC - self.origin
        self.n += len(z_NC)
        self.z, self.zz = self.z + z_NC.sum(0), self.zz + (z_NC * z_NC).sum(0)
        self.y, self.yy = self.y + y_NC.sum(0), self.yy + (y_NC * y_NC).sum(0)
        self.zy = self.zy + (z_NC * y_NC).sum(0)

    @property
    def mean(self) -> Tensor:
        """Mean of z."""
        assert self.origin is not None
        return self.origin + self.z / self.n

    @property
    def variance(self) -> Tensor:
        """Variance of z."""
        return torch.as_tensor(self.zz / self.n - (self.z / self.n) ** 2).clamp(min=0)

    @property
    def output_variance(self) -> Tensor:
        """Variance of phi(z)."""
        return torch.as_tensor(self.yy / self.n - (self.y / self.n) ** 2).clamp(min=0)

    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """The affine map nearest to the activation in mean square: factor a, constant c, residual variance per neuron.

        a = Cov(z, phi(z)) / Var z, c = E phi(z) - a E z; a = 0 where z never changes.
        """
        assert self.origin is not None
        covariance = self.zy / self.n - (self.z / self.n) * (self.y / self.n)
        variance = self.variance
        safe = torch.where(variance > 0, variance, 1.0)
        a = torch.where(variance > 0, covariance / safe, 0.0)
        c = self.origin + self.y / self.n - a * self.mean
        return a, c, (self.output_variance - a * covariance).clamp(min=0)


def measure(gm: fx.GraphModule, batches: Iterable[Any], chosen: list[Site] | None = None) -> dict[str, Moments]:
    """Moments of every call site over all batches, in evaluation mode.

    Raises:
        InputError: if there is no batch.
    """
    result: dict[str, Moments] = {}
    handles = []
    for site in sites(gm) if chosen is None else chosen:
        moments = result[site.name] = Moments()

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor, moments: Moments = moments, axis: int = site.channel_axis) -> None:
            moments.add(inputs[0], y, axis)

        handles.append(gm.get_submodule(target(gm, site)).register_forward_hook(hook))
    try:
        with evaluating(gm), torch.no_grad():
            seen = sum(len(gm(images_of(batch))) for batch in batches)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise InputError("no batch to measure on: the data loader is empty")
    return result


def normal_cdf(x: Tensor) -> Tensor:
    """Phi(x)."""
    return 0.5 * torch.erfc(-x / math.sqrt(2))


def normal_pdf(x: Tensor) -> Tensor:
    """phi(x)."""
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gaussian_fit(kind: str, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Closed-form factor and constant of the nearest affine map if z ~ N(mean, std^2), for relu and gelu (std > 0).

    Raises:
        InputError: for another activation, which has no such form here; use `Moments.affine`.
    """
    if kind == "relu":
        a = normal_cdf(mean / std)
        return a, std * normal_pdf(mean / std)
    if kind == "gelu":
        q = torch.sqrt(1 + std * std)
        a = normal_cdf(mean / q) + mean / q**3 * normal_pdf(mean / q)
        expected = mean * normal_cdf(mean / q) + std * std / q * normal_pdf(mean / q)
        return a, expected - a * mean
    raise InputError(f"no closed form for {kind!r}; relu and gelu have one")

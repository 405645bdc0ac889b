"""How often each neuron is ON: whole-number counts per call site, pooled over all batches, and the entropies they give.

A neuron is one channel (image models) or feature (token models) in front of an activation; z is the activation's input.
Counts are summed over images and positions and the entropy is taken once at the end. The mean of per-batch entropies, which
the papers' code takes, is only a lower bound (concavity): a neuron that is ON in one batch and OFF in the next would get 0.

Dimensions: B images, C neurons, N positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from edge_shared.errors import InputError
from torch import Tensor, fx, nn

from depthprune.capture import Site, evaluating, sites

# Where the region of z ends that the activation treats as its linear part.
UPPER = {"relu6": 6.0, "hardswish": 3.0}
ZeroIs = Literal["on", "off", "ignored"]
Over = Literal["all", "mixed"]


@dataclass(eq=False)
class Counts:
    """What one call site has seen; every tensor has shape (C,).

    Attributes:
        on: values z > 0.
        zero: values z = 0 exactly.
        total: all values per neuron (the same for each), so OFF = total - on - zero.
        upper: values at or above the upper end (ReLU6: 6, h-swish: 3); they are counted in `on` as well.
        low: smallest z.
        high: largest z.
        images: images seen.
    """

    on: Tensor
    zero: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor
    total: int = 0
    images: int = 0

    @classmethod
    def empty(cls, channels: int) -> Counts:
        """Nothing seen yet."""
        none = torch.zeros(channels, dtype=torch.int64)
        return cls(none.clone(), none.clone(), none.clone(), torch.full((channels,), torch.inf), torch.full((channels,), -torch.inf))

    @property
    def off(self) -> Tensor:
        """Values z < 0 per neuron."""
        return self.total - self.on - self.zero

    def add(self, z: Tensor, axis: int, upper: float | None = None) -> None:
        """Count a batch.

        Args:
            z: input of the activation, batch first.
            axis: axis of the neurons.
            upper: where the upper region begins, if the activation has one.

        Raises:
            InputError: if z holds NaN.
        """
        z = z.detach()
        images, channels = z.shape[0], z.shape[axis]
        if axis == z.ndim - 1 and z.ndim > 1:
            rows, dim = z.reshape(-1, channels), 0  # (BN, C)
        else:
            rows, dim = z.movedim(axis, 1).reshape(images * channels, -1), 1  # (BC, N)
        wide = rows.dtype if rows.dtype == torch.float64 or rows.shape[dim] < 2**24 else torch.float64
        buffer = torch.empty(rows.shape, dtype=wide, device=z.device)  # sums of ones in floats are exact below 2**24

        def count(compare: Any, bound: float) -> Tensor:
            ones = compare(rows, bound, out=buffer).sum(dim)
            return (ones.reshape(images, channels).sum(0, dtype=torch.float64) if dim else ones).round().to(torch.int64).cpu()

        low, high = rows.amin(dim), rows.amax(dim)
        if dim:
            low, high = low.reshape(images, channels).amin(0), high.reshape(images, channels).amax(0)
        if bool(torch.isnan(low).any()):
            raise InputError("the activations hold NaN; check the input data and the weights")
        on = count(torch.gt, 0.0)
        self.on += on
        # Exact zeros come from masks and padding: look for them only where a neuron reached zero from either side.
        self.zero += count(torch.ge, 0.0) - on
        if upper is not None and bool((high >= upper).any()):
            self.upper += count(torch.ge, upper)
        self.low, self.high = torch.minimum(self.low, low.cpu().float()), torch.maximum(self.high, high.cpu().float())
        self.total += rows.shape[dim] if dim == 0 else images * rows.shape[1]
        self.images += images

    def probability(self, zero_is: ZeroIs = "off") -> Tensor:
        """P(ON) per neuron, float64; with ``ignored`` the zeros leave the count, and a neuron that saw only zeros gets 0."""
        on = self.on + self.zero if zero_is == "on" else self.on
        seen = self.on + self.off if zero_is == "ignored" else torch.full_like(self.on, self.total)
        return on.double() / seen.clamp(min=1)

    def entropy(self, zero_is: ZeroIs = "off") -> Tensor:
        """Entropy of ON/OFF per neuron in bits, 0 to 1, float64."""
        return binary_entropy(self.probability(zero_is))

    def layer_entropy(self, zero_is: ZeroIs = "off", over: Over = "all") -> float:
        """Mean entropy of the layer over all neurons, or over the ``mixed`` ones (entropy above zero; 0 if there are none)."""
        H = self.entropy(zero_is)
        if over == "mixed":
            H = H[H > 0]
        return float(H.mean()) if H.numel() else 0.0

    @property
    def always_on(self) -> Tensor:
        """Neurons that were never OFF, bool (C,)."""
        return self.off == 0

    @property
    def always_off(self) -> Tensor:
        """Neurons that were never ON and once OFF, bool (C,)."""
        return (self.on == 0) & (self.off > 0)

    @property
    def margin(self) -> float:
        """Smallest |z| among neurons of constant sign, in units of z; 0 if some neuron is mixed."""
        mixed = ~(self.always_on | self.always_off)
        if bool(mixed.any()):
            return 0.0
        return float(torch.where(self.always_on, self.low, -self.high).min())

    @property
    def flip_bound(self) -> float:
        """Upper bound at 95 % of the probability that an unseen image flips a constant neuron: 3/n for n images (rule of three).

        Positions of one image are not independent, so they do not count.
        """
        return min(1.0, 3.0 / self.images) if self.images else 1.0


def binary_entropy(p: Tensor) -> Tensor:
    """-p log2 p - (1-p) log2 (1-p), exactly 0 at the ends."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0, dtype=p.dtype))


@dataclass
class Watcher:
    """Counts while a model runs; made by `watch`."""

    counts: dict[str, Counts] = field(default_factory=dict)


@contextmanager
def watch(gm: fx.GraphModule, chosen: list[Site] | None = None) -> Iterator[Watcher]:
    """Count at every call site while the block runs the captured model; hooks are removed at the end."""
    watcher, handles = Watcher(), []
    for site in sites(gm) if chosen is None else chosen:
        counts = watcher.counts[site.name] = Counts.empty(site.channels)
        upper = UPPER.get(site.kind)

        def hook(
            _: nn.Module, inputs: tuple[Tensor, ...], counts: Counts = counts, axis: int = site.channel_axis, upper: float | None = upper
        ) -> None:
            counts.add(inputs[0], axis, upper)

        handles.append(gm.get_submodule(target(gm, site)).register_forward_pre_hook(hook))
    try:
        yield watcher
    finally:
        for handle in handles:
            handle.remove()


def target(gm: fx.GraphModule, site: Site | str) -> str:
    """Qualified name of the module that stands at a call site."""
    name = site if isinstance(site, str) else site.name
    for node in gm.graph.nodes:
        if node.meta.get("site") == name:
            return str(node.target)
    known = ", ".join(s.name for s in sites(gm)[:5])
    raise InputError(f"no activation is called {name!r}; this model has {known}, ...")


def images_of(batch: Any) -> Tensor:
    """The input tensor of a batch: the batch itself, or its first entry."""
    x = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(x, Tensor):
        raise InputError(f"a batch holds {type(x).__name__} where a tensor of inputs should be")
    return x


def count(gm: fx.GraphModule, batches: Iterable[Any], chosen: list[Site] | None = None) -> dict[str, Counts]:
    """Run batches through a captured model in evaluation mode and count at every call site.

    Args:
        gm: from `capture.capture`.
        batches: tensors, or tuples whose first entry is the tensor.
        chosen: only these sites.

    Returns:
        Counts per site name, in the order of the calls.

    Raises:
        InputError: if there is no batch, or the activations hold NaN.
    """
    with watch(gm, chosen) as watcher, evaluating(gm), torch.no_grad():
        seen = 0
        for batch in batches:
            x = images_of(batch)
            gm(x)
            seen += len(x)
    if not seen:
        raise InputError("no batch to count on: the data loader is empty")
    return watcher.counts

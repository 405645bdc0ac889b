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


class Counts:
    """What one call site has seen: whole numbers per neuron, shape (C,).

    Attributes:
        total: all values per neuron (the same for each), so OFF = total - on - zero.
        images: images seen.
        low: smallest z, high: largest z, (C,) float32; no longer followed once some neuron was both ON and OFF, because then the
            layer has no margin.
    """

    def __init__(self, channels: int) -> None:
        # Sums of ones in float64 are exact below 2**53 and are added to in place; the properties give them as int64.
        self._on, self._nonnegative, self._upper = (torch.zeros(channels, dtype=torch.float64) for _ in range(3))
        self.low, self.high = torch.full((channels,), torch.inf), torch.full((channels,), -torch.inf)
        self.total, self.images = 0, 0
        self._mixed = False
        self._scratch = torch.empty(0)

    @property
    def on(self) -> Tensor:
        """Values z > 0 per neuron, int64."""
        return self._on.long()

    @property
    def zero(self) -> Tensor:
        """Values z = 0 exactly."""
        return (self._nonnegative - self._on).long()

    @property
    def off(self) -> Tensor:
        """Values z < 0."""
        return self.total - self._nonnegative.long()

    @property
    def upper(self) -> Tensor:
        """Values at or above the upper end (ReLU6: 6, h-swish: 3); they are counted in `on` as well."""
        return self._upper.long()

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
            rows, positions = z.reshape(-1, channels), 1  # (BN, C)
        else:
            rows = z.movedim(axis, 1).reshape(images, -1)  # (B, CN): summed over images first, which is fast for small maps too
            positions = rows.shape[1] // channels
        # One buffer for all batches: fresh memory for each would cost more than the counting.
        kind = torch.float32 if len(rows) * positions < 2**24 else torch.float64
        if self._scratch.numel() < rows.numel() or self._scratch.dtype != kind or self._scratch.device != rows.device:
            self._scratch = torch.empty(rows.numel(), dtype=kind, device=rows.device)
        buffer = self._scratch[: rows.numel()].view(rows.shape)

        def count(compare: Any, bound: float) -> Tensor:
            ones = compare(rows, bound, out=buffer).sum(0)
            return (ones.view(channels, positions).sum(1) if positions > 1 else ones).double().cpu()

        self._on += count(torch.gt, 0.0)
        self._nonnegative += count(torch.ge, 0.0)
        if upper is not None:
            self._upper += count(torch.ge, upper)
        if not self._mixed:
            self._follow_extremes(rows.amin(0).view(channels, positions).amin(1), rows.amax(0).view(channels, positions).amax(1))
        self.total += len(rows) * positions
        self.images += images

    def forget_buffer(self) -> None:
        """Give the memory back that `add` reuses between batches."""
        self._scratch = torch.empty(0)

    def _follow_extremes(self, low: Tensor, high: Tensor) -> None:
        if bool(torch.isnan(low).any()):
            raise InputError("the activations hold NaN; check the input data and the weights")
        self.low, self.high = torch.minimum(self.low, low.cpu().float()), torch.maximum(self.high, high.cpu().float())
        self._mixed = bool(((self.low < 0) & (self.high > 0)).any())

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
        if self._mixed:
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
    places = {node.meta["site"]: str(node.target) for node in gm.graph.nodes if "site" in node.meta}
    for site in sites(gm) if chosen is None else chosen:
        counts = watcher.counts[site.name] = Counts(site.channels)
        upper = UPPER.get(site.kind)

        def hook(
            _: nn.Module, inputs: tuple[Tensor, ...], counts: Counts = counts, axis: int = site.channel_axis, upper: float | None = upper
        ) -> None:
            counts.add(inputs[0], axis, upper)

        handles.append(gm.get_submodule(places[site.name]).register_forward_pre_hook(hook))
    try:
        yield watcher
    finally:
        for handle in handles:
            handle.remove()
        for counts in watcher.counts.values():
            counts.forget_buffer()


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
        InputError: if there is no batch, or the model gives NaN.
    """
    with watch(gm, chosen) as watcher, evaluating(gm), torch.no_grad():
        seen = 0
        for batch in batches:
            x = images_of(batch)
            y = gm(x)
            if isinstance(y, Tensor) and bool(torch.isnan(y).any()):
                raise InputError("the model gives NaN; check the input data and the weights")
            seen += len(x)
    if not seen:
        raise InputError("no batch to count on: the data loader is empty")
    return watcher.counts

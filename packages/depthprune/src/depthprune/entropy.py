"""How often each neuron is ON: whole-number counts per call site, pooled over all batches, and the entropies they give.

A neuron is one channel (image models) or feature (token models) in front of an activation; z is the activation's input.
Counts are summed over images and positions and the entropy is taken once at the end. The mean of per-batch entropies, which
the papers' code takes, is only a lower bound (concavity): a neuron that is ON in one batch and OFF in the next would get 0.

Dimensions: B images, C neurons, N positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from edge_shared.errors import InputError
from edge_shared.evaluating import evaluating
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from depthprune.capture import Site, module_of, sites

# Where the region of z ends that the activation treats as its linear part.
UPPER = {"relu6": 6.0, "hardswish": 3.0}
CACHED_BYTES = 2 << 20
Compare = Callable[..., Any]  # a numpy comparison
ZeroIs = Literal["on", "off", "ignored"]
Over = Literal["all", "mixed"]


class Scratch:
    """Memory for comparisons that all sites and batches share: fresh memory for each would cost more than the counting."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=bool)

    def take(self, rows: int, columns: int) -> NDArray[np.bool_]:
        """An array of (rows, columns) with any content."""
        if self._bytes.size < rows * columns:
            self._bytes = np.empty(rows * columns, dtype=bool)
        return self._bytes[: rows * columns].reshape(rows, columns)


def count_rows(z_BX: Tensor, tests: list[tuple[Compare, float]], scratch: Scratch) -> list[NDArray[Any]]:
    """How many rows of (B, X) pass each test, per column: arrays (X,) of whole numbers.

    A comparison gives bytes of 0 and 1, and eight columns are added at once as one 64-bit integer, at most 255 rows
    at a time, so that no byte overflows: a quarter of the memory that a sum of floats would move. As many rows are compared at a
    time as stay in the cache, so that only the first test reads them from memory.
    """
    if z_BX.dtype not in (torch.float32, torch.float64):
        z_BX = z_BX.float()
    values = z_BX.cpu().numpy()
    rows, columns = values.shape
    wide = -(-columns // 8) * 8
    step = min(rows, max(1, CACHED_BYTES // (values.itemsize * columns)), 255)
    ones = scratch.take(step, wide)
    ones[:, columns:] = False
    totals: list[NDArray[Any]] = [np.zeros(columns, dtype=np.int64) for _ in tests]
    for chunk in range(0, rows, 255):
        bytes_8 = np.zeros((len(tests), wide // 8), dtype=np.int64)
        for start in range(chunk, min(chunk + 255, rows), step):
            part = values[start : min(start + step, chunk + 255)]
            for row, (compare, bound) in zip(bytes_8, tests, strict=True):
                compare(part, bound, out=ones[: len(part), :columns])
                row += np.add.reduce(ones[: len(part)].view(np.int64), axis=0)
        for total, row in zip(totals, bytes_8, strict=True):
            total += row.view(np.uint8)[:columns]
    return totals


def per_neuron(sums_X: NDArray[Any], channels: int, last: bool) -> NDArray[np.int64]:
    """Sum counts (X,) over the positions of each neuron; neurons are the last axis or the first."""
    matrix = sums_X.astype(np.float64).reshape((-1, channels) if last else (channels, -1))
    ones = np.ones(matrix.shape[0 if last else 1])  # a product is the fastest sum, and exact in float64
    return (ones @ matrix if last else matrix @ ones).astype(np.int64)


class Counts:
    """What one call site has seen: whole numbers per neuron, shape (C,).

    Attributes:
        total: all values per neuron (the same for each), so OFF = total - on - zero.
        images: images seen.
        low: smallest z, high: largest z, (C,) float32; no longer followed once some neuron was both ON and OFF, because then the
            layer has no margin.
    """

    def __init__(self, channels: int, scratch: Scratch | None = None) -> None:
        self._on, self._nonnegative, self._upper = (np.zeros(channels, dtype=np.int64) for _ in range(3))
        self.low, self.high = torch.full((channels,), torch.inf), torch.full((channels,), -torch.inf)
        self.total, self.images = 0, 0
        self._mixed = False
        self._scratch = scratch or Scratch()

    @property
    def on(self) -> Tensor:
        """Values z > 0 per neuron, int64."""
        return torch.from_numpy(self._on)

    @property
    def zero(self) -> Tensor:
        """Values z = 0 exactly."""
        return torch.from_numpy(self._nonnegative - self._on)

    @property
    def off(self) -> Tensor:
        """Values z < 0."""
        return torch.from_numpy(self.total - self._nonnegative)

    @property
    def upper(self) -> Tensor:
        """Values at or above the upper end (ReLU6: 6, h-swish: 3); they are counted in `on` as well."""
        return torch.from_numpy(self._upper)

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
        # Memory order, so that no copy is made: neurons last behind a linear layer and in channels_last images, else positions last.
        last = axis == z.ndim - 1 or (z.ndim == 4 and axis == 1 and z.is_contiguous(memory_format=torch.channels_last))
        z_BX = z.movedim(axis, -1 if last else 1).reshape(images, -1)
        positions = z_BX.shape[1] // channels
        tests: list[tuple[Compare, float]] = [(np.greater, 0.0), (np.greater_equal, 0.0)]
        if upper is not None:
            tests.append((np.greater_equal, upper))
        seen = [per_neuron(sums_X, channels, last) for sums_X in count_rows(z_BX, tests, self._scratch)]
        self._on += seen[0]
        self._nonnegative += seen[1]
        if upper is not None:
            self._upper += seen[2]
        self.total += images * positions
        self.images += images
        if not self._mixed:
            self._mixed = bool(((seen[0] > 0) & (seen[1] < images * positions)).any())
        if not self._mixed:
            shape, over = ((-1, channels), 0) if last else ((channels, -1), 1)
            self._follow_extremes(z_BX.amin(0).view(shape).amin(over), z_BX.amax(0).view(shape).amax(over))

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
    watcher, handles, scratch = Watcher(), [], Scratch()
    places = {node.meta["site"]: str(node.target) for node in gm.graph.nodes if "site" in node.meta}
    for site in sites(gm) if chosen is None else chosen:
        counts = watcher.counts[site.name] = Counts(site.channels, scratch)
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


@contextmanager
def in_place(gm: fx.GraphModule) -> Iterator[None]:
    """Let activations overwrite their input inside the block (without gradients) where nothing else can see it.

    That holds behind a layer or norm that nothing else reads: these always make a tensor of their own. A captured graph has no
    activation in place otherwise; this gives back the time that costs.
    """
    changed = []
    for node in gm.graph.nodes:
        module, source = module_of(gm, node), node.args[0] if node.args else None
        if "site" not in node.meta or getattr(module, "inplace", True) or not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        if isinstance(module_of(gm, source), nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.Linear):
            changed.append(cast("nn.ReLU", module))
    for module in changed:
        module.inplace = True
    try:
        yield
    finally:
        for module in changed:
            module.inplace = False


@contextmanager
def norms_folded(gm: fx.GraphModule) -> Iterator[None]:
    """Let convolutions do the work of the batch norms behind them inside the block (evaluation mode, no gradients).

    The function is the same, as `fold.prepare` makes it for merging; z may differ in the last bit. The time it saves is
    about what counting takes.
    """
    uses: dict[str, int] = {}
    for node in gm.graph.nodes:
        uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    before: list[tuple[str, nn.Module]] = []
    for node in gm.graph.nodes:
        norm, source = module_of(gm, node), node.args[0] if node.args else None
        conv = module_of(gm, source)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            continue
        if not isinstance(source, fx.Node) or not isinstance(conv, nn.Conv2d):
            continue
        if len(source.users) == 1 and uses[str(source.target)] == uses[str(node.target)] == 1:
            before += [(str(source.target), conv), (str(node.target), norm)]
            fused = copy.copy(conv)  # a deep copy of every module would take as long as some of the counting
            fused._parameters = dict(
                zip(
                    ("weight", "bias"),
                    fuse_conv_bn_weights(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias),
                    strict=True,
                )
            )
            gm.set_submodule(str(source.target), fused)
            gm.set_submodule(str(node.target), nn.Identity())
    try:
        yield
    finally:
        for name, module in before:
            gm.set_submodule(name, module)


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
    with watch(gm, chosen) as watcher, evaluating(gm), torch.no_grad(), in_place(gm), norms_folded(gm):
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

"""How a layer keeps its selected channels: exactly, in 8 bits, or projected on low-rank bases; and the planner that decides.

Selection and compression under one budget: a channel that is kept in fewer bytes leaves room for more channels. The planner looks at
each layer once, on a calibration batch, and takes the form of fewest bytes whose weight gradient is off by at most a share of its norm;
the selector then fills the budget at the prices that result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_shared.errors import InputError

from ondevice_train.selection.layers import INPUT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ondevice_train.compression._codec import Codec
    from ondevice_train.compression.perplexity import Judged, LayerTable, Option

COMPRESS = ("asi", "fixed-bases", "quantise", "auto")
_ALL = 1 << 30  # more than any mode has: that mode stays whole


@dataclass(frozen=True)
class Keep:
    """The form in which a layer keeps its selected input channels.

    Attributes:
        form: ``exact`` (4 bytes an element), ``int8`` (1, and 8 bytes for each channel and call), or ``low-rank``: pixel rows and columns
            projected on bases of `ranks`, which the layer keeps once.
        ranks: rows and columns kept (low-rank).
        size: rows and columns of the input (low-rank).
        fixed: the bases of the first step stay; else they are refreshed when their error drifts (ASI).
        depthwise: the layer convolves channels one by one: dW from the rebuilt channels.
        gradient_error: |dW - dW_exact| / |dW_exact| of the whole layer on the calibration batch.
    """

    form: str = "exact"
    ranks: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    fixed: bool = False
    depthwise: bool = False
    gradient_error: float = 0.0

    def channel_bytes(self, batch: int, activations: int, calls: int = 1, itemsize: int = 4) -> int:
        """Bytes of one channel of `activations` elements a sample."""
        if self.form == "low-rank":
            return itemsize * batch * self.ranks[0] * self.ranks[1]
        return batch * activations + 2 * itemsize * calls if self.form == "int8" else itemsize * batch * activations

    def layer_bytes(self, itemsize: int = 4) -> int:
        """Bytes that do not depend on the channels: the bases."""
        if self.form != "low-rank":
            return 0
        return itemsize * sum(n * r for n, r in zip(self.size, self.ranks, strict=True) if r < n)

    def codec(self) -> Codec | None:
        """What encodes the channels of a low-rank layer; it remembers its bases from step to step."""
        if self.form != "low-rank":
            return None
        from ondevice_train.compression.asi import ASI
        from ondevice_train.compression.fixed_bases import FixedBases

        ranks = (_ALL, _ALL, *self.ranks)
        order = "rebuild" if self.depthwise else "project"
        return FixedBases(ranks, order=order) if self.fixed else ASI(ranks, order=order)  # type: ignore[arg-type]


EXACT, EIGHT_BITS = Keep(), Keep("int8")


def plan_keeps(
    model: nn.Module,
    example: Tensor,
    labels: Tensor | None = None,
    *,
    compress: str = "asi",
    max_error: float = 0.3,
    head: str | None = None,
) -> dict[str, Keep]:
    """Choose how each layer would keep its channels.

    Args:
        model: plain, not prepared; left as it was.
        example, labels: the calibration batch, of the batch size that will be trained on.
        compress: ``asi`` or ``fixed-bases`` (exact or low rank), ``quantise`` (8 bits), ``auto`` (any of the three).
        max_error: largest share of the gradient's norm that a form may be off; exact where none is within it.
        head: the classifier, which is left out.

    Returns:
        By layer name; layers that are not named keep exactly.

    Raises:
        InputError: unknown `compress`, or a share out of (0, 1].
    """
    from ondevice_train.compression.perplexity import judge, layers_of

    if compress not in COMPRESS:
        raise InputError(f"--compress {compress}: unknown; known: {', '.join(COMPRESS)}")
    if not 0 < max_error <= 1:
        raise InputError(f"--max-error {max_error}: it is a share of the gradient, in (0, 1]")
    found = [(name, module, shape) for name, module, shape, _ in layers_of(model, example) if name != head]

    def options(name: str, module: nn.Module, x: Tensor) -> list[Option]:
        return _options(module, x, compress)

    tables = judge(model, example, labels, [name for name, *_ in found], options)
    return {
        table.name: keep
        for table, (_, module, _) in zip(tables, found, strict=True)
        if (keep := _cheapest(table, module, max_error, compress)) != EXACT
    }


def _options(module: nn.Module, x: Tensor, compress: str) -> list[Option]:
    from torch import nn

    from ondevice_train.compression.hosvd import hosvd_ranks
    from ondevice_train.compression.perplexity import EPSILONS, Option
    from ondevice_train.compression.quantise import Quantise

    found: list[Option] = []
    conv = isinstance(module, nn.Conv2d)
    if compress in ("quantise", "auto"):
        found.append(Option("int8", lambda: Quantise(8, conv)))
    depthwise = conv and module.groups == module.in_channels == module.out_channels
    if compress == "quantise" or not conv or not (module.groups == 1 or depthwise) or min(x.shape[2:]) < 2:
        return found
    pairs = dict.fromkeys(tuple(ranks[2:]) for ranks in hosvd_ranks(x, EPSILONS))
    for pair in pairs:
        if pair != tuple(x.shape[2:]):
            keep = Keep("low-rank", pair, tuple(x.shape[2:]), compress == "fixed-bases", depthwise)  # type: ignore[arg-type]
            found.append(Option("low-rank", keep.codec, pair))  # type: ignore[arg-type]
    return found


def _cheapest(table: LayerTable, module: nn.Module, max_error: float, compress: str) -> Keep:
    allowed = [j for j in table.judged if j.choice != "freeze" and j.perplexity <= max_error * table.norm]
    best: Judged = min(allowed, key=lambda j: j.bytes)
    error = best.perplexity / table.norm if table.norm else 0.0
    if best.option is None:
        return EXACT
    if best.choice == "int8":
        return Keep("int8", gradient_error=error)
    ranks: tuple[int, int] = best.option.ranks  # type: ignore[assignment]
    groups = getattr(module, "groups", 1)
    return Keep("low-rank", ranks, (table.shape[2], table.shape[3]), compress == "fixed-bases", groups > 1, error)


def form_of(name: str, keeps: Mapping[str, Keep], unit: str) -> Keep:
    """The form of a layer; the channels that output neurons need (of depthwise layers) are never projected."""
    keep = keeps.get(name, EXACT)
    return keep if unit == INPUT or keep.form != "low-rank" else EXACT


def keeps_of(names: Sequence[str], keeps: Mapping[str, Keep], bits: int) -> dict[str, Keep]:
    """A form for every layer: that of `keeps`, else 8 bits or exact."""
    return {name: keeps.get(name, EIGHT_BITS if bits == 8 else EXACT) for name in names}

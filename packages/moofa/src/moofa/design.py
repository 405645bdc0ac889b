"""Solve the widths of a space whose layers all need about as much memory as the budget allows (MOOFA's idea).

MOOFA solves two quadratic equations for one fixed setting: 224 pixels, expand 4, in+out+weights, without the skip tensors,
the stride-2 first blocks or the real (rounded-up) sizes. Here every stage gets the largest width with which the
largest network, stem, stride-2 blocks and skips included, stays within the budget under the memory model asked for,
by the shared core's arithmetic itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from edge_shared.architectures import mobile
from edge_shared.errors import InputError
from edge_shared.memory import flash as flash_of
from edge_shared.memory import peak

from moofa.budget import Budget, Infeasible, Target
from moofa.costs import CostTable
from moofa.flatness import flatness
from moofa.space import Activation, FixedBlock, Space, Stage, Stem

OFA_WIDTHS = (24, 40, 80, 112, 160)
"""Widths of Once-For-All's five elastic stages; its stem and first block have 16."""
_Widths = tuple[int, ...]
FLAT = 0.7
"""Flatness that a designed space should have."""
STEM_WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class DesignConfig:
    """What the space must be.

    Attributes:
        resolution: input pixels.
        in_channels, classes: of images and outputs.
        stages: how many; None halves the size down to about 4 pixels.
        depths, kernels, expands: options of every stage.
        divisor: widths are multiples of it.
        se, activation: of every stage.
        name: of the space.
    """

    resolution: int
    in_channels: int = 3
    classes: int = 10
    stages: int | None = None
    depths: tuple[int, ...] = (1, 2)
    kernels: tuple[int, ...] = (3, 5)
    expands: tuple[float, ...] = (2, 3, 4)
    divisor: int = 4
    se: bool = False
    activation: Activation = "relu6"
    name: str = "designed"


@dataclass(frozen=True)
class Design:
    """A solved space.

    Attributes:
        space: the space.
        budget: what it was solved for.
        largest, smallest: costs of its two ends.
        cap: largest width that the flash limit left; None if it restricts nothing.
        control: Once-For-All's layout scaled to the same RAM budget, with the flatness of its largest network.
        same_stages: the same stem and stages with widths in Once-For-All's proportions.
    """

    space: Space
    budget: Budget
    largest: dict[str, float]
    smallest: dict[str, float]
    cap: int | None
    control: dict[str, Any] = field(default_factory=dict)
    same_stages: dict[str, Any] = field(default_factory=dict)


def design(budget: Budget, target: Target, config: DesignConfig) -> Design:
    """Solve the widths of a memory-flat space.

    Every stem (width, stride 1 or 2) is tried; the flattest space wins, the one with more MACs among equals. Where the flash limit
    cuts widths, spaces with fewer stages are tried too, and the one with most stages that is still `FLAT` wins.

    Args:
        budget: `ram` is what every layer may need; `flash` limits the largest network's weights.
        target: memory model, bits, device.
        config: the space's shape.

    Raises:
        Infeasible: if even the narrowest space does not fit, with what it needs.
        InputError: without a RAM budget, or for a shape that cannot be.
    """
    if budget.ram is None:
        raise InputError("a design needs a RAM budget, such as --budget 256kB, or a device")
    if config.resolution < 4:
        raise InputError(f"resolution {config.resolution} is too small; at least 4 pixels")
    known: dict[_Widths, int] = {}
    found = [
        (_quality(space, target), space, cap)
        for stride in (1, 2)
        for stem in STEM_WIDTHS
        for space, cap in _candidates(budget, target, config, Stem(out=stem, stride=stride), known)
    ]
    if not found:
        _refuse(budget, target, config)
    # Where flash limits, few stages are flattest of all: as many stages as are flat enough come first.
    limited = any(cap is not None for _, _, cap in found)

    def rank(one: tuple[tuple[float, float], Space, int | None]) -> tuple[float, ...]:
        (even, macs), space, _ = one
        return ((even >= FLAT, len(space.stages)) if limited else ()) + (round(even, 2), macs)

    _, space, cap = max(found, key=rank)
    table = CostTable(space, target)
    ends = table.costs(table.genes.encode([space.largest(), space.smallest()]))
    return Design(space, budget, ends.row(0), ends.row(1), cap, control(budget, target, space), control_same_stages(budget, target, space))


def control(budget: Budget, target: Target, space: Space) -> dict[str, Any]:
    """Once-For-All's layout at the same budget: its stem, first block, five stages and strides, all widths times one factor.

    The factor is the largest whose largest network is within the RAM budget (the flash budget is not asked). Depths, kernels
    and expansions are those of `space`.

    Returns:
        ``widths, flatness, ram, space``; empty if even the narrowest is over the budget.
    """
    pattern = space.stages[0]

    def scaled(step: int) -> Space:
        def width(channels: int) -> int:
            return max(4, round(step / 40 * channels / 4) * 4)

        return space.model_copy(
            update={
                "name": f"{space.name}-control",
                "stem": Stem(out=width(16), stride=2),
                "first": FixedBlock(out=width(16), activation=pattern.activation),
                "stages": tuple(
                    pattern.model_copy(update={"width": width(channels), "stride": stride})
                    for channels, stride in zip(OFA_WIDTHS, (2, 2, 2, 1, 2), strict=True)
                ),
            }
        )

    return _widest(scaled, budget, target)


def control_same_stages(budget: Budget, target: Target, space: Space) -> dict[str, Any]:
    """The stem and stages of `space` with widths in Once-For-All's proportions: what the widths alone change.

    Returns:
        As `control`.
    """

    def scaled(step: int) -> Space:
        widths = [max(4, round(step / 40 * OFA_WIDTHS[min(index, 4)] / 4) * 4) for index in range(len(space.stages))]
        stages = tuple(stage.model_copy(update={"width": width}) for stage, width in zip(space.stages, widths, strict=True))
        return space.model_copy(update={"name": f"{space.name}-same-stages", "stages": stages})

    return _widest(scaled, budget, target)


def _widest(scaled: Callable[[int], Space], budget: Budget, target: Target) -> dict[str, Any]:
    limit = budget.ram or 0
    if _ram(scaled(1), target)[0] > limit:
        return {}
    low, high = 1, 2
    while high < 4000 and _ram(scaled(high), target)[0] <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _ram(scaled(middle), target)[0] <= limit else (low, middle)
    space = scaled(low)
    ram, even = _ram(space, target)
    return {"widths": [stage.width for stage in space.stages], "flatness": even, "ram": ram, "space": space.model_dump(mode="json")}


def _strides(config: DesignConfig, stem_stride: int) -> tuple[int, ...]:
    size = -(-config.resolution // stem_stride)
    strides = [1 if size <= 16 else 2]
    size = -(-size // strides[0])
    while len(strides) < (config.stages or 8) and (config.stages is not None or size > 4):
        strides.append(2 if size > 2 else 1)
        size = -(-size // strides[-1])
    return tuple(strides)


def _space(config: DesignConfig, stem: Stem, strides: tuple[int, ...], widths: list[int]) -> Space:
    options: Any = {"depths": config.depths, "kernels": config.kernels, "expands": config.expands, "se": config.se}
    return Space(
        name=config.name,
        in_channels=config.in_channels,
        classes=config.classes,
        resolutions=(config.resolution,),
        stem=stem,
        activation=config.activation,
        stages=tuple(
            Stage(width=width, stride=stride, activation=config.activation, **options)
            for width, stride in zip(widths, strides, strict=False)
        ),
    )


def _candidates(
    budget: Budget, target: Target, config: DesignConfig, stem: Stem, known: dict[_Widths, int]
) -> Iterator[tuple[Space, int | None]]:
    """The solved space; where the flash limit cuts its widths, also those with fewer stages, whose last maps are larger.

    Equal memory at half the size takes four times the width and sixteen times the weights: late stages are what flash cannot pay.
    """
    count = config.stages or len(_strides(config, stem.stride))
    while True:
        space, cap = _within_flash(budget, target, replace(config, stages=count), stem, known)
        if space is not None:
            yield space, cap
        if (cap is None and space is not None) or config.stages is not None or count <= 2:
            return
        count -= 1


def _within_flash(
    budget: Budget, target: Target, config: DesignConfig, stem: Stem, known: dict[_Widths, int]
) -> tuple[Space | None, int | None]:
    """The solved space, its widths cut at the largest cap that the flash limit allows: late stages hold most weights."""
    space = _solve(budget, target, config, stem, known)
    if space is None or budget.flash is None or _flash(space, target) <= budget.flash:
        return space, None
    low, high = 1, max(stage.width for stage in space.stages) // config.divisor
    while high - low > 1:
        middle = (low + high) // 2
        narrower = _solve(budget, target, config, stem, known, middle * config.divisor)
        low, high = (middle, high) if narrower is not None and _flash(narrower, target) <= budget.flash else (low, middle)
    space = _solve(budget, target, config, stem, known, low * config.divisor)
    return (space, low * config.divisor) if space is not None and _flash(space, target) <= budget.flash else (None, None)


def _solve(budget: Budget, target: Target, config: DesignConfig, stem: Stem, known: dict[_Widths, int], cap: int = 8192) -> Space | None:
    strides = _strides(config, stem.stride)
    widths: list[int] = []
    for index in range(len(strides)):
        # The next stage's first block expands at this stage's size: a narrow one stands in for it.
        tail = [config.divisor] if index + 1 < len(strides) else []

        def fits(width: int, tail: list[int] = tail) -> bool:
            # Caps and fewer stages ask for the same spaces again.
            key = (stem.out, stem.stride, *widths, width, *tail)
            if key not in known:
                known[key] = _ram(_space(config, stem, strides, [*widths, width, *tail]), target)[0]
            return known[key] <= (budget.ram or 0)

        top = max(1, cap // config.divisor)
        if not fits(config.divisor):
            return None
        low, high = 1, 2
        while high <= top and fits(high * config.divisor):
            low, high = high, 2 * high
        high = min(high, top + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle * config.divisor) else (low, middle)
        widths.append(low * config.divisor)
    return _space(config, stem, strides, widths)


def _ram(space: Space, target: Target) -> tuple[int, float]:
    """RAM bytes and flatness of the largest network."""
    from edge_shared.memory import sram

    network = mobile.network(space.config(space.largest()))
    found = peak(network, target.memory_model, bits=target.bits)
    scratch = 0
    if target.has_scratch:
        buffers = sram(network)
        scratch = buffers.column_buffer + buffers.kernel_buffer
    weights = flash_of(network, target.bits)
    return target.ram(found.bytes, weights, scratch), flatness(found.per_layer, found.items)


def _flash(space: Space, target: Target) -> int:
    return flash_of(mobile.network(space.config(space.largest())), target.bits)


def _quality(space: Space, target: Target) -> tuple[float, float]:
    from edge_shared import flops

    return _ram(space, target)[1], float(flops.macs(mobile.network(space.config(space.largest()))))


def _refuse(budget: Budget, target: Target, config: DesignConfig) -> None:
    needs = []
    for stride in (1, 2):
        strides = _strides(config, stride)
        space = _space(config, Stem(out=STEM_WIDTHS[0], stride=stride), strides, [config.divisor] * len(strides))
        needs.append((_ram(space, target)[0], _flash(space, target)))
    smallest: dict[str, float] = {"ram": min(ram for ram, _ in needs), "flash": min(flash for _, flash in needs)}
    raise Infeasible(
        f"no space for {config.resolution} pixels is within {budget.describe()}: the narrowest needs {smallest['ram']:,} bytes of ram "
        f"and {smallest['flash']:,} bytes of flash",
        smallest,
    )


def published_widths(expand: float = 4, start: int = 24, size: float = 56, count: int = 6) -> list[int]:
    """MOOFA's own widths after the first elastic stage, by the rule of its official code: 96, 288, 360, 384, 392, 392.

    Depthwise memory 2ecs² + 49ec, expansion memory cs² + ec² + ecs²; the larger one, M, fixes the next width at half the size:
    the root of ec'² + (1+e)(s²/4)c' = M, and where the depthwise one is larger not more than 2c(s²+49) / (s²/2+49)
    (exact algebra would have 2s² + 49 above; the official code's slip changes no published width).
    """
    widths = [float(start)]
    for _ in range(count):
        c, e, s2 = widths[-1], expand, size**2
        depthwise, expansion = 2 * e * c * s2 + 49 * e * c, c * s2 + e * c * c + e * c * s2
        b = (1 + e) * s2 / 4
        wider = (-b + (b * b + 4 * e * max(depthwise, expansion)) ** 0.5) / (2 * e)
        if depthwise > expansion:
            wider = min(wider, 2 * c * (s2 + 49) / (s2 / 2 + 49))
        widths.append(float(mobile.make_divisible(wider)))
        size /= 2
    return [int(width) for width in widths[1:]]

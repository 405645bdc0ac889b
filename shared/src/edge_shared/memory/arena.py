"""Addresses for the tensors of a network in one static block of memory: what memory model D promises, laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from edge_shared.errors import InputError
from edge_shared.memory.inference import lifetimes, peak
from edge_shared.network import Network

ROUNDS = 50


@dataclass(frozen=True)
class Arena:
    """A static plan.

    Attributes:
        bytes: the highest address used.
        offsets: where each storage begins, in bytes, by the name of the tensor that owns it.
        sizes: bytes of each storage, rounded up to the alignment.
        lower_bound: bytes of model D, which no plan can go below.
    """

    bytes: int
    offsets: dict[str, int]
    sizes: dict[str, int]
    lower_bound: int


def arena(network: Network, *, bits: int | None = None, alignment: int = 1) -> Arena:
    """Place every storage so that no two that are alive at the same time overlap.

    Storages are placed one after the other at the lowest address that is free for their whole life; of several orders
    (largest first, as TensorFlow Lite Micro does; longest-lived first; first used first; each with what stood at the top
    moved to the front, again and again) the one with the lowest top wins.

    Args:
        network: batch 1 or what the shapes say.
        bits: per element; the tensors' own size if omitted.
        alignment: every address is a multiple of it, in bytes.

    Raises:
        InputError: for an alignment below 1.
    """
    if alignment < 1:
        raise InputError(f"alignment is {alignment}; it is at least 1 byte")
    spans = lifetimes(network)

    def size_of(name: str) -> int:
        tensor = network.tensors[name]
        exact = tensor.items * tensor.itemsize if bits is None else ceil(tensor.items * bits / 8)
        return ceil(exact / alignment) * alignment

    sizes = {name: size_of(name) for name in spans}
    orders: tuple[Callable[[str], tuple[int, ...]], ...] = (
        lambda name: (-sizes[name], spans[name][0]),
        lambda name: (spans[name][0] - spans[name][1], -sizes[name]),
        lambda name: (spans[name][0], -sizes[name]),
    )
    bound = peak(network, "D", bits=bits).bytes
    plans = [_improved(sorted(spans, key=order), sizes, spans, bound) for order in orders]
    best = min(plans, key=lambda plan: _top(plan, sizes))
    return Arena(_top(best, sizes), best, sizes, bound)


def _improved(order: list[str], sizes: dict[str, int], spans: dict[str, tuple[int, int]], bound: int) -> dict[str, int]:
    """The lowest plan of an order and those in which, again and again, the storage at the top is placed before all others."""
    best = _place(order, sizes, spans)
    plan = best
    for _ in range(ROUNDS):
        top = _top(plan, sizes)
        if top <= bound:
            break
        highest = next(name for name in order if plan[name] + sizes[name] == top)
        if order[0] == highest:
            break
        order = [highest, *(name for name in order if name != highest)]
        plan = _place(order, sizes, spans)
        best = min(best, plan, key=lambda one: _top(one, sizes))
    return best


def _top(plan: dict[str, int], sizes: dict[str, int]) -> int:
    return max((offset + sizes[name] for name, offset in plan.items()), default=0)


def _place(order: Iterable[str], sizes: dict[str, int], spans: dict[str, tuple[int, int]]) -> dict[str, int]:
    plan: dict[str, int] = {}
    for name in order:
        first, last = spans[name]
        taken = sorted((plan[other], plan[other] + sizes[other]) for other in plan if spans[other][0] <= last and first <= spans[other][1])
        address = 0
        for start, end in taken:
            if address + sizes[name] <= start:
                break
            address = max(address, end)
        plan[name] = address
    return plan

"""How evenly a network uses its peak memory: the mean over its blocks of a block's largest need, over the peak."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_shared.memory import LayerMemory


def block_of(layer: str) -> int | None:
    """The block that a layer belongs to by its name; None for stem and head."""
    return int(layer.split(".")[1]) if layer.startswith("blocks.") else None


def flatness(needs: Iterable[LayerMemory], peak_items: int) -> float:
    """Mean over blocks of the most that any layer of the block needs, over the network's peak.

    1 if every block needs as much as the largest; a network without blocks has 1. Stem and head do not count, except that
    the peak may lie in them.

    Args:
        needs: memory of each layer, `Peak.per_layer`.
        peak_items: the network's peak.
    """
    largest: dict[int, int] = {}
    for need in needs:
        if (block := block_of(need.layer)) is not None:
            largest[block] = max(largest.get(block, 0), need.items)
    return sum(largest.values()) / len(largest) / peak_items if largest else 1.0

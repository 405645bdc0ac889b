"""Plots: memory of each layer against the budget, the Pareto front, the architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.report import COLOURS, INK, figure

from moofa.profile import Profile

if TYPE_CHECKING:
    from edge_shared.architectures.mobile import MobileConfig

    from moofa.search import Archive, Found


def memory_histogram(folder: Path, profile: Profile, budget: int | None = None, name: str = "memory") -> str:
    """Bytes that each layer needs, in order of execution, with the budget and the mean as lines.

    Args:
        folder: where to.
        profile: with layers.
        budget: RAM in bytes.
        name: of the files.
    """
    values = np.array([layer.bytes for layer in profile.layers]) / 1024
    kinds = [layer.kind for layer in profile.layers]
    colours = {"conv": COLOURS[0], "depthwise": COLOURS[1]}
    with figure(folder, name, size=(8, 3.8)) as axes:
        for kind, label in (("conv", "convolution"), ("depthwise", "depthwise convolution"), ("", "other")):
            chosen = [index for index, one in enumerate(kinds) if (one == kind if kind else one not in colours)]
            if chosen:
                axes.bar(np.array(chosen), values[chosen], width=0.85, color=colours.get(kind, COLOURS[7]), label=label)
        if budget:
            axes.axhline(budget / 1024, color=COLOURS[3], linestyle="--", linewidth=1.5, label=f"budget {budget / 1024:.4g} KiB")
        starts = _block_starts([layer.name for layer in profile.layers])
        axes.set_xticks(list(starts.values()), list(starts), rotation=45, ha="right")
        axes.set_ylabel("KiB")
        axes.set_ylim(0, max(values.max(), (budget or 0) / 1024) * 1.28)
        axes.set_title(f"Memory per layer, model {profile.memory_model} at {profile.bits} bits; flatness {profile.flatness:.2f}")
        axes.legend(loc="upper right", ncols=4)
    return name


def _block_starts(names: Sequence[str]) -> dict[str, int]:
    starts: dict[str, int] = {}
    for index, name in enumerate(names):
        part = name.split(".")
        title = f"block {part[1]}" if part[0] == "blocks" else "stem" if part[0] == "stem" else "head"
        starts.setdefault(title, index)
    return starts


def pareto(folder: Path, archive: Archive, front: Sequence[Found], budgets: Sequence[int] = (), name: str = "pareto") -> str:
    """Predicted accuracy over RAM: all networks that were looked at, the front, and the budgets.

    Args:
        folder: where to.
        archive: of the search.
        front: networks that no other beats.
        budgets: RAM in bytes, drawn as lines.
        name: of the files.
    """
    with figure(folder, name, size=(7.5, 4.2)) as axes:
        shown = np.random.default_rng(0).permutation(len(archive))[:5000]
        axes.scatter(
            archive.costs.ram[shown] / 1024, 100 * archive.scores[shown], s=5, color=COLOURS[7], alpha=0.35, linewidths=0, label="looked at"
        )
        best = _staircase(front)
        axes.step(
            [ram / 1024 for ram, _ in best],
            [100 * score for _, score in best],
            where="post",
            color=COLOURS[0],
            label="best within the budget",
        )
        axes.plot([ram / 1024 for ram, _ in best], [100 * score for _, score in best], "o", color=COLOURS[0])
        for index, budget in enumerate(budgets):
            axes.axvline(budget / 1024, color=COLOURS[3], linestyle=":", linewidth=1, label="budgets" if index == 0 else None)
        axes.set_xlabel("RAM, KiB")
        axes.set_ylabel("predicted accuracy, %")
        axes.set_title(f"Accuracy against memory: {len(archive):,} networks")
        axes.legend(loc="lower right")
    return name


def _staircase(front: Sequence[Found]) -> list[tuple[float, float]]:
    """RAM and score of the networks of a front that raise the score as RAM grows."""
    result: list[tuple[float, float]] = []
    for found in sorted(front, key=lambda one: (one.costs["ram"], -one.score)):
        if not result or found.score > result[-1][1]:
            result.append((found.costs["ram"], found.score))
    return result


def architecture(folder: Path, config: MobileConfig, name: str = "architecture") -> str:
    """The network as boxes from input to output: height is the feature map's size, width its channels, with kernel and expansion.

    Args:
        folder: where to.
        config: the network.
        name: of the files.
    """
    from matplotlib.patches import Rectangle

    size = config.resolution
    boxes: list[tuple[str, int, int, str, str]] = [("input", size, config.in_channels, "", COLOURS[7])]
    size = -(-size // config.stem.stride)
    boxes.append(("stem", size, config.stem.out, f"k{config.stem.kernel}", COLOURS[7]))
    shades = {3: COLOURS[0], 5: COLOURS[2], 7: COLOURS[4]}
    for index, block in enumerate(config.blocks):
        size = -(-size // block.stride)
        note = f"k{block.kernel}\ne{block.expand:g}" + ("\nSE" if block.se else "")
        boxes.append((str(index), size, block.out, note, shades.get(block.kernel, COLOURS[1])))
    if config.final_expand:
        boxes.append(("expand", size, config.final_expand, "k1", COLOURS[7]))
    boxes.append(("head", 1, config.feature_mix or config.classes, f"{config.classes}\nclasses", COLOURS[7]))
    widest = max(box[2] for box in boxes)
    with figure(folder, name, size=(max(6.0, 0.62 * len(boxes)), 3.6)) as axes:
        for place, (title, pixels, channels, note, colour) in enumerate(boxes):
            height = 0.15 + 0.85 * pixels / config.resolution
            width = 0.2 + 0.6 * channels / widest
            axes.add_patch(
                Rectangle((place - width / 2, -height / 2), width, height, facecolor=colour, alpha=0.85, edgecolor=INK, linewidth=0.6)
            )
            axes.text(place, -0.62, f"{title}\n{pixels}²×{channels}", ha="center", va="top", fontsize=7)
            axes.text(place, 0.58, note, ha="center", va="bottom", fontsize=7)
        axes.set_xlim(-0.7, len(boxes) - 0.3)
        axes.set_ylim(-0.95, 0.95)
        axes.axis("off")
        axes.set_title(f"{config.name}: {len(config.blocks)} blocks; height: size of the map, width: channels")
    return name


def training_curves(folder: Path, histories: dict[str, list[dict[str, Any]]], name: str = "training") -> str:
    """Held-out accuracy of the largest and the smallest network over the epochs of all phases."""
    with figure(folder, name) as axes:
        start = 0
        for index, (phase, epochs) in enumerate(histories.items()):
            x = [start + number + 1 for number in range(len(epochs))]
            for key, label, colour in (("val_largest_accuracy", "largest", COLOURS[0]), ("val_smallest_accuracy", "smallest", COLOURS[1])):
                axes.plot(x, [100 * epoch[key] for epoch in epochs], color=colour, label=label if index == 0 else None)
            if index:
                axes.axvline(start + 0.5, color=COLOURS[7], linewidth=0.8)
            if len(histories) > 1:
                axes.text(start + 0.6, axes.get_ylim()[0], phase, fontsize=7, va="bottom")
            start += len(epochs)
        axes.set_xlabel("epoch")
        axes.set_ylabel("held-out accuracy, %")
        axes.set_title("Supernet training")
        axes.legend(loc="lower right")
    return name

"""What every method answers: how good a layer is to lose, which to take now, how to take it, when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, fx, nn

from depthprune.capture import Site, sites
from depthprune.entropy import Counts, count
from depthprune.surgery import Removal, remove


@dataclass
class State:
    """A model on its way to fewer layers; methods read and change it.

    Attributes:
        model: captured graph (`capture.capture`).
        calibration: batches ``(x, y)`` that scores may look at; never test data.
        held_out: batches ``(x, y)`` for trial removals, disjoint from the test data.
        candidates: names of the sites that may be removed; all if None.
        removals: what was removed, in order.
        masks: weight masks by parameter name, float 0/1; empty for methods without unstructured pruning.
    """

    model: fx.GraphModule
    calibration: Sequence[Any]
    held_out: Sequence[Any]
    candidates: frozenset[str] | None = None
    removals: list[Removal] = field(default_factory=list)
    masks: dict[str, Tensor] = field(default_factory=dict)

    def open_sites(self) -> list[Site]:
        """Activations that are still there and may go."""
        return [site for site in sites(self.model) if self.candidates is None or site.name in self.candidates]

    def counts(self) -> dict[str, Counts]:
        """Pooled counts of the open sites over the calibration batches."""
        return count(self.model, self.calibration, self.open_sites())

    def remove(self, site: str, *args: Any) -> None:
        """Remove an activation (arguments of `surgery.remove`) and write it down."""
        self.removals.append(remove(self.model, site, *args))


class DepthMethod(Protocol):
    """One published way to find layers that a network can lose."""

    name: str
    takes_pairs: bool  # whether a site may be removed along with its other half (see `depthprune.pairs`)

    def prepare(self, state: State) -> None:
        """Change the model once before the first round (Layer Folding puts its slopes in); most do nothing."""

    def penalty(self, state: State) -> Callable[[nn.Module], Tensor] | None:
        """A term to add to the fine-tuning loss, or None."""

    def score(self, state: State) -> dict[str, float]:
        """How much each open site would be missed: the lowest goes first."""

    def choose(self, state: State, scores: dict[str, float], count: int) -> list[str]:
        """At most about `count` sites to remove in this round; may be none where a method must prune more first."""

    def apply(self, state: State, chosen: list[str]) -> None:
        """Remove them (and prune, for the entropy-guided methods); fine-tuning follows."""

    def stop(self, state: State, accuracy: float, dense_accuracy: float) -> bool:
        """Whether to stop after a round with this validation accuracy (both 0 to 1)."""


@dataclass
class Method:
    """Defaults that the methods share: remove the lowest scores by identity, stop when accuracy falls too far.

    Attributes:
        tolerance: accuracy that may be lost against the dense net, 0.01 = one point.
    """

    tolerance: float = 0.01
    name = "method"
    takes_pairs = True

    def prepare(self, state: State) -> None:
        """Nothing to prepare."""

    def penalty(self, state: State) -> Callable[[nn.Module], Tensor] | None:
        """No extra loss."""
        return None

    def choose(self, state: State, scores: dict[str, float], count: int) -> list[str]:
        """The `count` lowest scores; ties go to the earlier layer."""
        return lowest(scores, count)

    def apply(self, state: State, chosen: list[str]) -> None:
        """Replace by identity."""
        for site in chosen:
            state.remove(site)

    def stop(self, state: State, accuracy: float, dense_accuracy: float) -> bool:
        """Stop once accuracy is below the dense one by more than `tolerance`."""
        return accuracy < dense_accuracy - self.tolerance


def lowest(scores: dict[str, float], count: int) -> list[str]:
    """Names of the `count` lowest scores, in order of score; ties in order of appearance."""
    return sorted(scores, key=scores.__getitem__)[:count]


def sign_mask(counts: Counts) -> Tensor:
    """1 for neurons that are mostly ON, 0 for those mostly OFF: float (C,)."""
    return (counts.on > counts.off).float()

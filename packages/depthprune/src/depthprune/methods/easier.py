"""EASIER: repeatedly make the activation of lowest entropy an identity (Quétu et al., ECML-PKDD 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from depthprune.methods.protocol import Method, State, lowest


@dataclass
class Easier(Method):
    """Lowest mean entropy over all neurons first; sites of entropy exactly 0 go along.

    z = 0 counts as ON, as in the authors' code. Unlike there, counts are pooled with the weights at rest. OFF neurons become
    linear too: the function changes, and fine-tuning absorbs it.
    """

    name = "easier"

    def score(self, state: State) -> dict[str, float]:
        """Layer entropy in bits, 0 to 1."""
        return {site: counts.layer_entropy("on", "all") for site, counts in state.counts().items()}

    def choose(self, state: State, scores: dict[str, float], count: int) -> list[str]:
        """The `count` lowest, and every further one that is exactly 0."""
        chosen = lowest(scores, count)
        return chosen + [site for site in lowest(scores, len(scores)) if scores[site] == 0 and site not in chosen]

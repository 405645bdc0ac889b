"""The loop: score, choose, apply, fine-tune, check; step back when too much is lost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from edge_shared.errors import CheckFailed, InputError
from edge_shared.evaluating import evaluating
from torch import Tensor, fx, nn

from depthprune.capture import capture
from depthprune.entropy import Counts
from depthprune.finetune import Finetune, recalibrate
from depthprune.methods import DepthMethod, State
from depthprune.padding import mergeable_sites, move_to_front
from depthprune.pairs import complete, depthwise_pairs, level
from depthprune.surgery import Removal


@dataclass(frozen=True)
class Round:
    """One round of the loop.

    Attributes:
        number: from 1.
        removed: sites taken out in it.
        scores: of all open sites before it.
        accuracy: on the validation part after fine-tuning, 0 to 1.
        kept: whether the round stands; a rejected one is undone and tried with fewer layers.
        sparsity: share of masked weights, 0 to 1.
    """

    number: int
    removed: tuple[str, ...]
    scores: dict[str, float]
    accuracy: float
    kept: bool
    sparsity: float = 0.0


@dataclass
class Outcome:
    """What the loop left.

    Attributes:
        model: the shortened, fine-tuned graph, in evaluation mode (not merged yet).
        removals: what was removed.
        rounds: every round, rejected ones included.
        dense_accuracy: validation accuracy before.
        accuracy: validation accuracy of `model`.
        counts: ON/OFF counts of each removed site just before its removal.
        front_padded: layers whose padding was moved to the front of their chain.
    """

    model: fx.GraphModule
    removals: list[Removal]
    rounds: list[Round]
    dense_accuracy: float
    accuracy: float
    counts: dict[str, Counts] = field(default_factory=dict)
    front_padded: set[str] = field(default_factory=set)


class DepthPruner:
    """Removes activations round by round.

    Args:
        model: any module; it is copied.
        example: one input, batch first.
        method: see `depthprune.methods`.
        calibration: batches (x, y) that scores may look at.
        held_out: batches (x, y) for trial removals.
        evaluate: validation accuracy of a model, 0 to 1.
        finetune: trains after each removal.
        per_round: activations to remove at once; after a rejected round half as many are tried. The two beside a depthwise
            convolution go together, at the mean of their scores (see `pairs`).
        target: stop after this many removals; None = as many as accuracy allows.
        candidates: sites that may go; ``mergeable`` takes those whose removal lets layers merge, ``all`` every one; or their names
            (see `worth.worth_merging`).
        front_pad: move padding to the front of what opened, so that merging is exact: everywhere, nowhere, or at these sites.
            Where no merge follows it would only make maps larger.
        max_rounds: at most this many rounds.
        say: gets a line of progress per round.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        method: DepthMethod,
        *,
        calibration: Sequence[Any],
        held_out: Sequence[Any],
        evaluate: Callable[[nn.Module], float],
        finetune: Finetune,
        per_round: int = 1,
        target: int | None = None,
        candidates: str | frozenset[str] = "mergeable",
        front_pad: bool | frozenset[str] = True,
        max_rounds: int = 40,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        for name, value in (("per_round", per_round), ("max_rounds", max_rounds)):
            if value < 1:
                raise InputError(f"{name} is {value}; it is at least 1")
        gm = capture(copy.deepcopy(model), example).eval()
        self.blocked = mergeable_sites(gm)
        self.pairs = depthwise_pairs(gm)
        self.state = State(gm, calibration, held_out, removable(gm, candidates, target))
        self.method, self.evaluate, self.finetune, self.say = method, evaluate, finetune, say
        self.per_round, self.target, self.front_pad, self.max_rounds = per_round, target, front_pad, max_rounds
        self.example = example
        self.rounds: list[Round] = []
        self.counts: dict[str, Counts] = {}
        self.moved: set[str] = set()
        self.dense_accuracy = evaluate(gm)

    def run(self) -> Outcome:
        """Loop until the method stops, the target is reached or nothing is left.

        Raises:
            CheckFailed: if a target was given and accuracy does not allow it.
        """
        size, accuracy, best_try = self.per_round, self.dense_accuracy, 0.0
        self.method.prepare(self.state)
        if self.method.penalty(self.state) is not None:
            self.finetune(self.state.model, 0, self.state.masks, self.method.penalty(self.state))
        while len(self.rounds) < self.max_rounds:
            left = None if self.target is None else self.target - len(self.state.removals)
            if left is not None and left <= 0:
                break
            before = self._save()
            step = self.step(size if left is None else min(size, left), left)
            if step is None:
                break
            if step.kept:
                accuracy = step.accuracy
                continue
            best_try = max(best_try, step.accuracy)
            self._restore(before)
            unit = 2 if any(set(pair) <= set(step.removed) for pair in self.pairs) else 1
            if len(step.removed) <= unit:
                break
            size = max(unit, len(step.removed) // 2)
        if self.target is not None and len(self.state.removals) < self.target:
            raise CheckFailed(
                f"only {len(self.state.removals)} of the {self.target} layers asked for can go within the accuracy allowed "
                f"(validation {self.dense_accuracy:.4f} before, {best_try:.4f} after the round that was undone); "
                "allow a larger loss, train longer or ask for fewer"
            )
        self.state.model.eval()
        return Outcome(self.state.model, self.state.removals, self.rounds, self.dense_accuracy, accuracy, self.counts, self.moved)

    def step(self, count: int, limit: int | None = None) -> Round | None:
        """One round of about `count` removals, at most `limit`; None if nothing is left to do."""
        scores = level(self.method.score(self.state), self.pairs)
        if not scores:
            return None
        chosen = self.method.choose(self.state, scores, count)
        if self.method.takes_pairs:
            chosen = complete(chosen, scores, self.pairs)
        chosen = chosen[:limit]
        evidence = self.state.counts()
        masked = sum(int((mask == 0).sum()) for mask in self.state.masks.values())
        self.method.apply(self.state, chosen)
        if not chosen and sum(int((mask == 0).sum()) for mask in self.state.masks.values()) == masked:
            return None
        if self.front_pad:
            gone = {removal.site for removal in self.state.removals}
            self.moved |= set(move_to_front(self.state.model, gone if self.front_pad is True else gone & self.front_pad))
        number = len(self.rounds) + 1
        self.finetune(self.state.model, number, self.state.masks, self.method.penalty(self.state))
        if self.state.masks or any(removal.how == "sign" for removal in self.state.removals):
            recalibrate(self.state.model, self.state.calibration)  # there are constant neurons now
        accuracy = self.evaluate(self.state.model)
        kept = not self.method.stop(self.state, accuracy, self.dense_accuracy)
        total = sum(mask.numel() for mask in self.state.masks.values())
        sparsity = sum(int((mask == 0).sum()) for mask in self.state.masks.values()) / total if total else 0.0
        done = Round(number, tuple(chosen), scores, accuracy, kept, sparsity)
        self.rounds.append(done)
        if kept:
            self.counts |= {site: evidence[site] for site in chosen if site in evidence}
        what = ", ".join(chosen) if chosen else f"no layer yet, {sparsity:.0%} of the weights"
        self.say(f"round {number}: removed {what}; validation accuracy {accuracy:.4f}{'' if kept else ' - too low, undone'}")
        return done

    def _save(self) -> tuple[fx.GraphModule, list[Removal], dict[str, Tensor]]:
        return copy.deepcopy(self.state.model), list(self.state.removals), {k: v.clone() for k, v in self.state.masks.items()}

    def _restore(self, saved: tuple[fx.GraphModule, list[Removal], dict[str, Tensor]]) -> None:
        self.state.model, self.state.removals, self.state.masks = saved


def removable(gm: fx.GraphModule, candidates: str | frozenset[str], target: int | None) -> frozenset[str]:
    """Names of the activations of a captured graph that may be removed; for ``worth`` those of ``mergeable``.

    Raises:
        InputError: if there are none, or fewer than the `target`.
    """
    if isinstance(candidates, str) and candidates not in ("worth", "mergeable", "all"):
        raise InputError(f"candidates is {candidates!r}; it is worth, mergeable or all")
    reasons = mergeable_sites(gm)
    if not reasons:
        raise InputError("the model calls no activation that could be removed")
    chosen = candidates if not isinstance(candidates, str) else reasons.keys() if candidates == "all" else None
    names = frozenset(name for name, reason in reasons.items() if (reason is None if chosen is None else name in chosen))
    if not names:
        reason = next(iter(reasons.values()))
        raise InputError(f"no activation stands between layers that could be merged ({reason}); candidates='all' removes others")
    if target is not None and not 0 <= target <= len(names):
        raise InputError(f"{target} layers to remove, but only {len(names)} of {len(reasons)} activations can be removed")
    return names


def accuracy_of(loader: Any, device: str = "cpu") -> Callable[[nn.Module], float]:
    """A function that measures a model's accuracy (0 to 1) on labelled batches.

    Raises:
        InputError: when called, if the batches have no labels.
    """

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        right = total = 0
        with evaluating(model):
            for batch in loader:
                if not isinstance(batch, list | tuple) or len(batch) < 2:
                    raise InputError("accuracy needs labels: batches must be (inputs, labels)")
                x, y = batch[:2]
                right += int((model(x.to(device)).argmax(1) == y.to(device)).sum())
                total += len(y)
        if not total:
            raise InputError("no batch to evaluate on: the data loader is empty")
        return right / total

    return accuracy

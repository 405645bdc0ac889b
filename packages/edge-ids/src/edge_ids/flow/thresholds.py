"""Where to cut the scores: with labels, or by what benign traffic looks like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from edge_shared.errors import InputError

from edge_ids.flow.metrics import macro_f1
from edge_ids.flow.table import Array

Rule = Literal["f1", "mad", "quantile"]
RULES = ("f1", "mad", "quantile")


@dataclass(frozen=True)
class Threshold:
    """A cut: flows that score above `value` raise an alarm.

    Attributes:
        rule: how it was found.
        value: the cut.
        samples: calibration flows it rests on.
        target: the asked false-alarm rate (rule ``quantile``).
        confidence: probability that the true rate is at most `target` (rule ``quantile``), if the benign flows to come are
            like the calibration flows.
    """

    rule: Rule
    value: float
    samples: int
    target: float | None = None
    confidence: float | None = None


def supervised_f1(scores: Array, label: Array, candidates: int | None = None, slack: float = 0.0) -> Threshold:
    """The cut with the best macro F1 on labelled scores (GraphIDS, section 4.3).

    With `slack`, cuts whose macro F1 is at most that much lower count as equal, and the one in the widest gap between scores is taken. Where
    a busy pair of hosts has one score for all of its flows, the very best cut may lie a hair below a thousand attacks.

    Args:
        scores: (E,).
        label: 1 for attacks, (E,).
        candidates: None tries every distinct cut; 500 is the official code's evenly spaced grid between the extremes.
        slack: macro F1 that may be given up for a wider gap; 0 takes the first of the best cuts.

    Raises:
        InputError: if a class is absent.
    """
    attacks, benign = int((label == 1).sum()), int((label == 0).sum())
    if not attacks or not benign:
        raise InputError("--threshold f1 needs benign and attack flows in the validation part; use --threshold quantile or mad")
    values, inverse = np.unique(scores, return_inverse=True)
    if candidates is None:
        # Halfway to the next score, so that a hair's difference in arithmetic does not flip a flow.
        cuts = np.append(np.nextafter(values[0], -np.inf), (values + np.append(values[1:], values[-1])) / 2)
    else:
        cuts = np.linspace(values[0], values[-1], candidates)
    above = np.searchsorted(values, cuts, side="right")

    def caught(mask: Array) -> Array:
        """Flows of `mask` that score above each cut."""
        counts = np.bincount(inverse[mask], minlength=len(values))
        return np.append(np.cumsum(counts[::-1])[::-1], 0)[above]

    quality = macro_f1(caught(label == 1), caught(label == 0), attacks, benign)
    gap = values[np.minimum(above, len(values) - 1)] - values[np.maximum(above - 1, 0)]
    equal = np.flatnonzero(quality >= quality.max() - slack) if slack else quality.argmax(0, keepdims=True)
    return Threshold("f1", float(cuts[equal[gap[equal].argmax()]]), len(scores))


def mad(scores: Array, factor: float = 10.0) -> Threshold:
    """Median + `factor` x 1.4826 x median absolute deviation of benign scores (label-free rule of the official code)."""
    if not len(scores):
        raise InputError("--threshold mad needs benign calibration flows; the validation part has none")
    middle = float(np.median(scores))
    return Threshold("mad", middle + factor * 1.4826 * float(np.median(np.abs(scores - middle))), len(scores))


def quantile(scores: Array, rate: float, confidence: float = 0.95) -> Threshold:
    """The lowest cut whose false-alarm rate is at most `rate` with probability `confidence`.

    The k-th highest of n benign scores is exceeded by a new benign flow with a probability that is Beta(k, n - k + 1) distributed
    (order statistics, no assumption on the scores); the highest k that keeps the bound is taken.

    Args:
        scores: benign calibration scores, (n,).
        rate: largest false-alarm rate, in (0, 1).
        confidence: in (0, 1).

    Raises:
        InputError: if there are fewer than ln(1 - confidence) / ln(1 - rate) scores: not even the highest one would do.
    """
    from scipy.stats import beta

    if not 0 < rate < 1:
        raise InputError(f"--false-alarm-rate {rate}: give a share between 0 and 1")
    if not 0 < confidence < 1:
        raise InputError(f"--confidence {confidence}: give a probability between 0 and 1")
    count = len(scores)
    needed = math.ceil(math.log(1 - confidence) / math.log(1 - rate))
    if count < needed:
        raise InputError(
            f"a false-alarm rate of {rate:g} at confidence {confidence:g} needs {needed:,} benign calibration flows, there are {count:,}; "
            "raise --false-alarm-rate or give more flows"
        )
    ranks = np.arange(1, count + 1)
    k = int(ranks[beta.ppf(confidence, ranks, count - ranks + 1) <= rate].max(initial=1))
    return Threshold("quantile", float(np.sort(scores)[-k]), count, rate, confidence)


def calibrate(
    rule: Rule, scores: Array, label: Array | None, rate: float = 0.01, confidence: float = 0.95, slack: float = 0.0
) -> Threshold:
    """Apply `rule` to validation scores; ``mad`` and ``quantile`` see only the benign ones."""
    if rule not in RULES:
        raise InputError(f"--threshold {rule}: choose one of {', '.join(RULES)}")
    if rule == "f1":
        if label is None:
            raise InputError("--threshold f1 needs labels, the data has none; use --threshold quantile or mad")
        return supervised_f1(scores, label, slack=slack)
    good = scores if label is None else scores[label == 0]
    return mad(good) if rule == "mad" else quantile(good, rate, confidence)

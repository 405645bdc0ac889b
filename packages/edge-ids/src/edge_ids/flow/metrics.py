"""How well scores tell attacks from benign flows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_ids.flow.table import Array


@dataclass(frozen=True)
class Metrics:
    """Figures of one scored set; None where a class is absent.

    Attributes:
        flows: number of flows.
        prevalence: share of attacks; a coin reaches this PR-AUC.
        pr_auc: average precision of the attack class (step sum, as the paper's code computes it).
        benign_pr_auc: average precision of the benign class: what PR-AUC hides where nearly all flows are attacks.
        roc_auc: area under the ROC curve.
        macro_f1: mean of the F1 of both classes at the threshold.
        precision: of the attack class at the threshold.
        recall: likewise.
        false_alarm_rate: share of benign flows above the threshold.
    """

    flows: int
    prevalence: float | None
    pr_auc: float | None
    benign_pr_auc: float | None
    roc_auc: float | None
    macro_f1: float | None
    precision: float | None
    recall: float | None
    false_alarm_rate: float | None


def average_precision(scores: Array, label: Array) -> float | None:
    """Average precision, sum over thresholds of (recall step) x precision; None without both classes."""
    if label is None or not 0 < label.sum() < len(label):
        return None
    from sklearn.metrics import average_precision_score

    # The sum of the steps of a perfect score is sometimes one rounding above 1.
    return min(float(average_precision_score(label, scores)), 1.0)


def measure(scores: Array, label: Array | None, threshold: float) -> Metrics:
    """Compute `Metrics` of `scores` (E,), higher being more suspicious, against `label` (E,), 1 for attacks.

    A flow is flagged if its score is above (not equal to) `threshold`.
    """
    count = len(scores)
    if label is None:
        return Metrics(count, None, None, None, None, None, None, None, None)
    both = 0 < label.sum() < count
    flagged = scores > threshold
    tp, fp = int((flagged & (label == 1)).sum()), int((flagged & (label == 0)).sum())
    attacks, benign = int((label == 1).sum()), int((label == 0).sum())
    roc = None
    if both:
        from sklearn.metrics import roc_auc_score

        roc = float(roc_auc_score(label, scores))
    return Metrics(
        flows=count,
        prevalence=attacks / count if count else None,
        pr_auc=average_precision(scores, label),
        benign_pr_auc=average_precision(-scores, 1 - label),
        roc_auc=roc,
        macro_f1=float(macro_f1(tp, fp, attacks, benign)) if both else None,
        precision=tp / (tp + fp) if tp + fp else None,
        recall=tp / attacks if attacks else None,
        false_alarm_rate=fp / benign if benign else None,
    )


def macro_f1(tp: Array | int, fp: Array | int, attacks: int, benign: int) -> Array:
    """Mean of both classes' F1 from true and false positives; an F1 of 0/0 is 0, as scikit-learn has it."""
    tp, fp = np.asarray(tp, float), np.asarray(fp, float)
    fn, tn = attacks - tp, benign - fp
    attack = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    good = 2 * tn / np.maximum(2 * tn + fp + fn, 1)
    return (attack + good) / 2

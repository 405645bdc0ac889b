"""Normalised mutual information between discrete labels and a classifier's softmax, differentiable in the logits.

Used by FFW (ECCV 2024) and by the information removal head of Voronoi (ICCV 2023, Eq. 7-8).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


def mutual_information(labels_N: torch.Tensor, logits_NB: torch.Tensor) -> torch.Tensor:
    """Plug-in estimate I(label; prediction) / ln B of a batch, a scalar in [0, 1].

    The joint is p(j, k) = mean over samples of [label = j] softmax(logits)_k. An empty batch, or one whose labels are all
    equal, holds no information: exactly 0, with gradient 0. The estimate is biased upward by about (B-1)²/(2 N ln B):
    see `bias_of_estimate`.
    """
    classes = logits_NB.shape[1]
    if len(labels_N) == 0 or classes < 2:
        return logits_NB.sum() * 0.0
    probability_NB = logits_NB.softmax(1)
    joint_BB = functional.one_hot(labels_N, classes).to(probability_NB.dtype).T @ probability_NB / len(labels_N)
    independent_BB = joint_BB.sum(1, keepdim=True) * joint_BB.sum(0, keepdim=True)
    tiny = 1e-15
    ratio_BB = joint_BB.clamp_min(tiny) / independent_BB.clamp_min(tiny)
    return (joint_BB * ratio_BB.log()).sum() / math.log(classes)


def bias_of_estimate(samples: int, classes: int) -> float:
    """Expected value of the plug-in estimate where there is no information: (B-1)² / (2 N ln B)."""
    return (classes - 1) ** 2 / (2 * samples * math.log(classes))


class InformationHead(nn.Module):
    """A linear head that reads the bias from features; it learns, the network unlearns.

    `learn` trains the head alone (features detached); `leak` is the mutual information that the network's features show through
    the head, whose weights get no gradient from it.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def learn(self, features_ND: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the head."""
        return functional.cross_entropy(self.linear(features_ND.detach()), labels_N)

    def leak(self, features_ND: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Mutual information seen through the frozen head."""
        logits_NB = functional.linear(features_ND, self.linear.weight.detach(), self.linear.bias.detach())
        return mutual_information(labels_N, logits_NB)

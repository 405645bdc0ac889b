"""Deep feature reweighting (Kirichenko 2023): refit the last layer of the vanilla network on the balanced part."""

from __future__ import annotations

from pathlib import Path

import torch

from fairnet import networks
from fairnet.data.parts import BiasedSet
from fairnet.methods import vanilla
from fairnet.methods._train import Outcome, Settings, predict


def run(data: BiasedSet, settings: Settings, folder: Path | None = None) -> Outcome:
    """Logistic regression on standardised features of the balanced part, folded back into the classifier."""
    data.need_balance("dfr")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    model = vanilla.run(data, settings, folder).model
    features, _ = predict(model, data.balanced, data)
    scaler = StandardScaler().fit(features)
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(scaler.transform(features), data.balanced.y)
    weight = torch.zeros(len(data.classes), features.shape[1], dtype=torch.float64)
    bias = torch.full((len(data.classes),), -1e3, dtype=torch.float64)  # a class that the balanced part lacks is never predicted
    coefficient, intercept = torch.tensor(fitted.coef_), torch.tensor(fitted.intercept_)
    if len(fitted.classes_) == 2:
        coefficient, intercept = torch.cat([-coefficient, coefficient]) / 2, torch.cat([-intercept, intercept]) / 2
    scale, mean = torch.tensor(scaler.scale_), torch.tensor(scaler.mean_)
    weight[fitted.classes_] = coefficient / scale
    bias[fitted.classes_] = intercept - (coefficient * mean / scale).sum(1)
    head = networks.head_of(model)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return Outcome(model)

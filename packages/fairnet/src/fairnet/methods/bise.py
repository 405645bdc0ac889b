"""BISE (CVPR 2026), as far as it is known to us: a mask of channels learned on the biased training images alone, with their true groups.

Second-hand: from notes on the paper and its code, not from its text. Against FFW: no balanced set; gates are hard from the first
step, with the sigmoid's gradient; cross-entropy is weighted to the balanced grid of labels and groups; the mutual information counts on
conflicting images only; the temperature is halved on a fixed schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fairnet import networks
from fairnet.data.parts import BiasedSet
from fairnet.gates import Granularity
from fairnet.geometry import balanced_grid_weights
from fairnet.information import InformationHead
from fairnet.methods import vanilla
from fairnet.methods._train import Outcome, Settings, predict, tensors
from fairnet.methods.ffw import cut, gate, true_biases


@dataclass(frozen=True)
class BiseConfig:
    """Settings.

    Attributes:
        granularity: ``channels``, or ``weights`` where a network has no known channels.
        gamma: weight of the mutual information.
        lr, weight_decay: SGD (momentum 0.9) on the gates.
        head_lr, head_epochs: SGD (momentum 0.9) on the information head, and its epochs before the first gate moves.
        epochs_per_tau: epochs at each temperature: 1, 0.5, 0.25, ... down to `tau_last`.
        batch_size: images a step.
    """

    granularity: Granularity = "channels"
    gamma: float = 1.0
    lr: float = 0.01
    weight_decay: float = 1e-4
    head_lr: float = 0.1
    head_epochs: int = 50
    epochs_per_tau: int = 10
    tau_last: float = 1e-3
    batch_size: int = 100


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: BiseConfig | None = None) -> Outcome:
    """Train vanilla, then learn the mask on the same images; the last mask is the result."""
    data.need_groups("bise")
    config = config or BiseConfig()
    model = vanilla.run(data, settings, folder).model
    torch.manual_seed(settings.seed)
    x, y, _ = tensors(data.train, data)
    goes = data.alignment(data.train)
    assert goes is not None
    follows: NDArray[np.bool_] = np.all(goes, axis=0)
    weights = torch.tensor(balanced_grid_weights(follows, data.train.y, len(data.classes)), dtype=torch.float32)
    conflicting = torch.tensor(~follows)
    biases = [(torch.tensor(bias), values) for bias, values in true_biases(data, data.train)]
    heads = [InformationHead(networks.head_of(model).in_features, values) for _, values in biases]
    readers = torch.optim.SGD([p for head in heads for p in head.parameters()], lr=config.head_lr, momentum=0.9, weight_decay=1e-4)

    def learn(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([head.learn(features, bias[rows]) for head, (bias, _) in zip(heads, biases, strict=True)]).sum()

    features = torch.tensor(predict(model, data.train, data)[0])
    for _ in range(config.head_epochs):
        for rows in torch.randperm(len(y)).split(config.batch_size):
            readers.zero_grad()
            learn(features[rows], rows).backward()  # type: ignore[no-untyped-call]
            readers.step()
    gated = gate(model, config.granularity, straight_through=True)
    gates = torch.optim.SGD(gated.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    tau, history = 1.0, []
    while tau >= config.tau_last:
        gated.set(tau=tau)
        for _ in range(config.epochs_per_tau):
            for rows in torch.randperm(len(y)).split(config.batch_size):
                with networks.bottleneck(model) as caught:
                    logits = model(x[rows])
                    seen = caught[0]
                chosen = conflicting[rows]
                leaks = [head.leak(seen[chosen], bias[rows][chosen]) for head, (bias, _) in zip(heads, biases, strict=True)]
                task = (weights[rows] * functional.cross_entropy(logits, y[rows], reduction="none")).mean()
                gates.zero_grad()
                (task + config.gamma * torch.stack(leaks).mean()).backward()  # type: ignore[no-untyped-call]
                gates.step()
                readers.zero_grad()
                learn(seen, rows).backward()  # type: ignore[no-untyped-call]
                readers.step()
        history.append({"tau": tau, "kept": gated.kept_share()})
        tau /= 2
    masks = gated.masks()
    gated.close()
    return cut(model, masks, config.granularity, {"schedule": history})

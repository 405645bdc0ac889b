"""FFW, "Debiasing surgeon" (ECCV 2024): cut the part of a frozen biased network that carries the shortcut.

Gates with a temperature are learned on the small balanced part, whose bias labels are known:
J = cross-entropy + gamma * I(bias; information head on the bottleneck). The head learns from detached features, the network's
weights and norms never change. When J's validation figure no longer improves, the temperature falls tenfold; at each fall
the hard mask is a candidate, and the best candidate on held-out balanced data wins.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edge_shared.errors import InputError
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fairnet import networks
from fairnet.data.parts import BiasedSet, Part
from fairnet.gates import GatedNetwork, Granularity
from fairnet.information import InformationHead
from fairnet.methods import vanilla
from fairnet.methods._train import Outcome, Settings, predict, tensors


@dataclass(frozen=True)
class FfwConfig:
    """Settings.

    Attributes:
        granularity: ``channels`` (the mask becomes a smaller network) or ``weights``.
        gamma: weight of the mutual information.
        lr, weight_decay: Adam on the gates; the paper's code decays them, which pulls gates to the threshold.
        head_lr: SGD (momentum 0.9) on the head.
        epochs: at most, over all temperatures.
        patience: epochs without 5 % improvement before the temperature falls.
        floor: smallest accuracy on held-out balanced data that a mask may have, as a share of the open network's.
        batch_size: of the mask's training; large, for the mutual information.
    """

    granularity: Granularity = "channels"
    gamma: float = 1.0
    lr: float = 0.02
    weight_decay: float = 1e-4
    head_lr: float = 0.1
    epochs: int = 60
    patience: int = 3
    tau_factor: float = 0.1
    tau_last: float = 1e-3
    floor: float = 0.9
    batch_size: int = 200

    def __post_init__(self) -> None:
        if self.granularity not in ("channels", "weights"):
            raise InputError(f"granularity is {self.granularity!r}; use channels or weights")


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: FfwConfig | None = None) -> Outcome:
    """Train vanilla, then learn the mask on the balanced part with its true groups."""
    config = config or FfwConfig()
    model = vanilla.run(data, settings, folder).model
    part = data.balanced
    return surgery(model, data, part, part.b, np.ones(len(part)), np.ones(len(part), dtype=bool), len(data.groups), settings, config)


def surgery(
    model: nn.Module,
    data: BiasedSet,
    part: Part,
    bias_N: NDArray[np.int64],
    weights_N: NDArray[np.floating],
    informative_N: NDArray[np.bool_],
    groups: int,
    settings: Settings,
    config: FfwConfig,
) -> Outcome:
    """Learn the mask.

    Args:
        model: the frozen network.
        data: for names and normalisation.
        part: images that the mask is learned on; a fifth is held out to choose it.
        bias_N: the bias label of each image, true or pseudo.
        weights_N: weight of each image's cross-entropy.
        informative_N: images whose mutual information counts.
        groups: number of bias labels.
        settings: seed.
        config: see `FfwConfig`.

    Returns:
        The network with the hard mask applied; for channel masks also the physically smaller one.
    """
    torch.manual_seed(settings.seed)
    x, y, _ = tensors(part, data)
    bias, weights, informative = torch.tensor(bias_N), torch.tensor(weights_N, dtype=torch.float32), torch.tensor(informative_N)
    held = torch.zeros(len(y), dtype=torch.bool)
    held[torch.randperm(len(y))[: max(len(y) // 5, 1)]] = True
    sites = [(unit, unit.conv.out_channels) for unit in networks.channel_units(model)] if config.granularity == "channels" else []
    gated = GatedNetwork(model, config.granularity, sites)
    head = InformationHead(networks.head_of(model).in_features, groups)
    gates = torch.optim.Adam(gated.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    reader = torch.optim.SGD(head.parameters(), lr=config.head_lr, momentum=0.9, weight_decay=1e-4)

    def objective(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with networks.bottleneck(model) as caught:
            logits = model(x[rows])
            features = caught[0]
        task = (weights[rows] * functional.cross_entropy(logits, y[rows], reduction="none")).mean()
        chosen = informative[rows]
        return task + config.gamma * head.leak(features[chosen], bias[rows][chosen]), head.learn(features, bias[rows]), logits

    def epoch(learn_gates: bool) -> None:
        rows = (~held).nonzero().flatten()
        for batch in rows[torch.randperm(len(rows))].split(config.batch_size):
            total, learn, _ = objective(batch)
            reader.zero_grad()
            if learn_gates:
                gates.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                gates.step()
            learn.backward()  # type: ignore[no-untyped-call]
            reader.step()

    def score() -> tuple[float, float]:
        rows = held.nonzero().flatten()
        with torch.no_grad():
            total, _, logits = objective(rows)
            right = (logits.argmax(1) == y[rows]).float() * weights[rows]
        return float(total), float(right.sum() / weights[rows].sum())

    for _ in range(5):
        epoch(learn_gates=False)
    _, open_accuracy = score()
    best_mask, best_accuracy, history = gated.masks(), open_accuracy, []
    tau, best, waited = 1.0, float("inf"), 0
    for number in range(config.epochs):
        gated.set(tau=tau, hard=False)
        epoch(learn_gates=True)
        value, _ = score()
        gated.set(hard=True)
        _, accuracy = score()
        history.append({"epoch": number, "tau": tau, "objective": value, "accuracy": accuracy, "kept": gated.kept_share()})
        if accuracy > best_accuracy or (accuracy == best_accuracy and accuracy >= config.floor * open_accuracy):
            best_mask, best_accuracy = gated.masks(), accuracy
        waited = 0 if value < best - 0.05 * abs(best) else waited + 1
        best = min(best, value)
        if waited > config.patience:
            tau, waited, best = tau * config.tau_factor, 0, float("inf")
            if tau < config.tau_last:
                break
    gated.load_masks(best_mask)
    details: dict[str, Any] = {
        "kept_share": gated.kept_share(),
        "open_accuracy": open_accuracy,
        "mask_accuracy": best_accuracy,
        "history": history,
    }
    gated.close()
    return _cut(model, best_mask, config.granularity, details)


def _cut(model: nn.Module, masks: list[torch.Tensor], granularity: Granularity, details: dict[str, Any]) -> Outcome:
    """The network with the mask burnt in: weights set to zero, or channels taken out."""
    if granularity == "channels":
        smaller = networks.extract(model, masks)
        details["channels"] = [int(mask.sum()) for mask in masks]
        return Outcome(smaller, details, smaller)
    cut = copy.deepcopy(model)
    layers = [module for module in cut.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, mask in zip(layers, masks, strict=True):
            layer.weight.mul_(mask)
    return Outcome(cut, details)


def probe_accuracy(model: nn.Module, data: BiasedSet, seed: int = 0) -> float:
    """How well a freshly trained linear probe reads the group from the bottleneck of test images: fitted on the balanced part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    features = scaler.fit_transform(predict(model, data.balanced, data)[0])
    probe = LogisticRegression(max_iter=1000, random_state=seed).fit(features, data.balanced.b)
    return float(probe.score(scaler.transform(predict(model, data.test, data)[0]), data.test.b))

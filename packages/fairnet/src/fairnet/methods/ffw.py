"""FFW, "Debiasing surgeon" (ECCV 2024): cut the part of a frozen biased network that carries the shortcut.

Gates with a temperature are learned on the small balanced part, whose bias labels are known:
J = cross-entropy + gamma * I(bias; information head on the bottleneck), averaged over the attributes where there are several. The heads
learn from detached features, the network's weights and norms never change. When J's validation figure no longer improves, the
temperature falls tenfold. After each epoch the hard mask is a candidate; the one that is most accurate on the held-out balanced
images wins (the paper's code takes the one whose bias probe is worst, but measures that on the target by mistake).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edge_shared.checkpoints import load_checkpoint, save_checkpoint
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

Bias = tuple[NDArray[np.int64], int]
"""Bias labels (N,) of an attribute, and how many values it has."""


@dataclass(frozen=True)
class FfwConfig:
    """Settings.

    Attributes:
        granularity: ``channels`` (channels or neurons; the mask becomes a smaller network) or ``weights``.
        gamma: weight of the mutual information.
        lr, weight_decay: Adam on the gates; the paper's code decays them, which pulls gates to the threshold.
        head_lr: SGD (momentum 0.9) on the heads.
        epochs: at most, over all temperatures.
        patience: epochs without 5 % improvement before the temperature falls.
        tau_factor, tau_last: the temperature starts at 1, is multiplied by the factor, and ends the search below the last.
        batch_size: of the mask's training.
    """

    granularity: Granularity = "channels"
    gamma: float = 1.0
    lr: float = 0.02
    weight_decay: float = 1e-4
    head_lr: float = 0.1
    epochs: int = 100
    patience: int = 10
    tau_factor: float = 0.1
    tau_last: float = 1e-3
    batch_size: int = 100

    def __post_init__(self) -> None:
        if self.granularity not in ("channels", "weights"):
            raise InputError(f"granularity is {self.granularity!r}; use channels or weights")
        if not self.gamma >= 0:
            raise InputError(f"gamma is {self.gamma}; it is at least 0")


@dataclass(frozen=True)
class Operation:
    """A learned mask: one bool tensor per gated layer (True: kept), and what was seen on the way."""

    masks: list[torch.Tensor]
    details: dict[str, Any]


def run(data: BiasedSet, settings: Settings, folder: Path | None = None, config: FfwConfig | None = None) -> Outcome:
    """Train vanilla, then learn the mask on the balanced part with its true groups."""
    config = config or FfwConfig()
    model, operation = operate(data, settings, folder, config)
    return cut(model, operation.masks, config.granularity, operation.details)


def operate(data: BiasedSet, settings: Settings, folder: Path | None, config: FfwConfig) -> tuple[nn.Module, Operation]:
    """The vanilla network and FFW's mask for it; a mask that is already in `folder` is read."""
    data.need_balance("ffw")
    model = vanilla.run(data, settings, folder).model
    path = folder and folder / f"ffw-{config.granularity}.safetensors"
    if path and path.exists():
        kept = load_checkpoint(path)
        if kept["config"] == asdict(config):
            return model, Operation(kept["masks"], kept["details"])
    part = data.balanced
    every = np.ones(len(part))
    operation = surgery(model, data, part, true_biases(data, part), every, every.astype(bool), settings, config)
    if path:
        save_checkpoint(path, {"config": asdict(config), "masks": operation.masks, "details": operation.details})
    return model, operation


def true_biases(data: BiasedSet, part: Part) -> list[Bias]:
    """The bias labels of each attribute."""
    return [(attribute.of_group[part.b], len(attribute.values)) for attribute in data.attributes]


def surgery(
    model: nn.Module,
    data: BiasedSet,
    part: Part,
    biases: Sequence[Bias],
    weights_N: NDArray[np.floating],
    informative_N: NDArray[np.bool_],
    settings: Settings,
    config: FfwConfig,
) -> Operation:
    """Learn the mask.

    Args:
        model: the frozen network.
        data: for names and normalisation.
        part: images that the mask is learned on; a fifth is held out to choose it.
        biases: bias labels, true or pseudo; one head each.
        weights_N: weight of each image's cross-entropy.
        informative_N: images whose mutual information counts.
        settings: seed.
        config: see `FfwConfig`.
    """
    torch.manual_seed(settings.seed)
    x, y, _ = tensors(part, data)
    labels = [torch.tensor(bias) for bias, _ in biases]
    weights, informative = torch.tensor(weights_N, dtype=torch.float32), torch.tensor(informative_N)
    held = torch.zeros(len(y), dtype=torch.bool)
    held[torch.randperm(len(y))[: max(len(y) // 5, 1)]] = True
    gated = gate(model, config.granularity)
    heads = [InformationHead(networks.head_of(model).in_features, values) for _, values in biases]
    gates = torch.optim.Adam(gated.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    readers = torch.optim.SGD([p for head in heads for p in head.parameters()], lr=config.head_lr, momentum=0.9, weight_decay=1e-4)

    def objective(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with networks.bottleneck(model) as caught:
            logits = model(x[rows])
            features = caught[0]
        task = (weights[rows] * functional.cross_entropy(logits, y[rows], reduction="none")).mean()
        chosen = informative[rows]
        leak = torch.stack([head.leak(features[chosen], bias[rows][chosen]) for head, bias in zip(heads, labels, strict=True)]).mean()
        learn = torch.stack([head.learn(features, bias[rows]) for head, bias in zip(heads, labels, strict=True)]).sum()
        return task + config.gamma * leak, learn, logits

    def epoch(learn_gates: bool) -> None:
        rows = (~held).nonzero().flatten()
        for batch in rows[torch.randperm(len(rows))].split(config.batch_size):
            total, learn, _ = objective(batch)
            readers.zero_grad()
            if learn_gates:
                gates.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                gates.step()
            learn.backward()  # type: ignore[no-untyped-call]
            readers.step()

    def score() -> tuple[float, float]:
        rows = held.nonzero().flatten()
        with torch.no_grad():
            total, _, logits = objective(rows)
            right = (logits.argmax(1) == y[rows]).float() * weights[rows]
        return float(total), float(right.sum() / weights[rows].sum())

    for _ in range(5):
        epoch(learn_gates=False)
    _, open_accuracy = score()
    best_masks, best_accuracy, history = gated.masks(), open_accuracy, []
    tau, best, waited = 1.0, float("inf"), 0
    for number in range(config.epochs):
        gated.set(tau=tau, hard=False)
        epoch(learn_gates=True)
        value, _ = score()
        gated.set(hard=True)
        _, accuracy = score()
        history.append({"epoch": number, "tau": tau, "objective": value, "accuracy": accuracy, "kept": gated.kept_share()})
        if accuracy >= best_accuracy:
            best_masks, best_accuracy = gated.masks(), accuracy
        waited = 0 if value < best - 0.05 * abs(best) else waited + 1
        best = min(best, value)
        if waited > config.patience:
            tau, waited, best = tau * config.tau_factor, 0, float("inf")
            if tau < config.tau_last:
                break
    gated.close()
    return Operation(
        best_masks,
        {"kept_share": kept_share(best_masks), "open_accuracy": open_accuracy, "mask_accuracy": best_accuracy, "history": history},
    )


def gate(model: nn.Module, granularity: Granularity, straight_through: bool = False) -> GatedNetwork:
    """Put gates on a network's weights, or behind its channels and neurons."""
    sites = [(site, site.gate_shape) for site in networks.gate_sites(model)] if granularity == "channels" else []
    return GatedNetwork(model, granularity, sites, straight_through)


def kept_share(masks: Sequence[torch.Tensor]) -> float:
    """Share of the gates that are open."""
    return float(sum(mask.sum() for mask in masks)) / sum(mask.numel() for mask in masks)


def cut(model: nn.Module, masks: Sequence[torch.Tensor], granularity: Granularity, details: dict[str, Any]) -> Outcome:
    """The network with the mask burnt in: weights set to zero, or channels taken out."""
    details = {**details, "kept_share": kept_share(masks)}
    if granularity == "channels":
        smaller = networks.extract(model, masks)
        details["channels"] = [int(mask.sum()) for mask in masks]
        return Outcome(smaller, details, smaller)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for layer, mask in zip(weighted_layers(masked), masks, strict=True):
            layer.weight.mul_(mask)
    return Outcome(masked, details)


def weighted_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layers whose weights are gated, in order."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def probe_accuracy(model: nn.Module, data: BiasedSet, test_features: NDArray[np.float32], seed: int = 0) -> float:
    """How well a freshly trained linear probe reads the bias from the bottleneck of test images, fitted on the balanced part; the mean
    over attributes where there are several."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, _ = predict(model, data.balanced, data)
    found = []
    for (known, _), (true, _) in zip(true_biases(data, data.balanced), true_biases(data, data.test), strict=True):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed)).fit(features, known)
        found.append(float(probe.score(test_features, true)))
    return float(np.mean(found))

"""Predict a network's accuracy from its genes: a small MLP, trained with torch, evaluated with numpy.

The size is that of Once-For-All's predictor: three hidden layers, no output bias but the mean accuracy. By default it is
monotone: a network that contains another (more blocks, wider ones, more pixels) is never predicted to be worse; of kernels no
order is assumed. Accuracies are counted on a few hundred held-out images, and what a free MLP learns from them is to a large
part which of those images a network happens to get right; see the README for what the constraint changes on other images.
All weights are non-negative, and each layer has convex and concave units in equal parts, so that gains may rise or fade
(Runje and Shankaranarayana, ICML 2023). ``monotone=False`` is Once-For-All's predictor: one-hot features, ReLU, free signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import read_json, write_bytes, write_json

from moofa.space import Genes, Space


@dataclass(frozen=True)
class PredictorConfig:
    """Settings of the predictor's training.

    Attributes:
        hidden: width of the three hidden layers.
        epochs: passes over the measured networks.
        lr, weight_decay: of Adam.
        held_out: share of the networks that only judge the predictor.
        monotone: whether a network that contains another is never predicted to be worse.
        seed: of the split and the weights.
    """

    hidden: int = 128
    epochs: int = 300
    lr: float = 1e-3
    weight_decay: float = 1e-4
    held_out: float = 0.2
    monotone: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Quality:
    """How well the predictor does on networks it was not trained on: Kendall's tau, Pearson's r, RMSE in accuracy."""

    networks: int
    held_out: int
    kendall_tau: float | None
    pearson_r: float | None
    rmse: float


class Predictor:
    """Predicted accuracy of gene rows.

    Args:
        space: the space.
        weights: four matrices and three biases of the MLP.
        base: mean accuracy, added to the output.
        monotone: which features and units the weights belong to.
    """

    def __init__(self, space: Space, weights: dict[str, np.ndarray], base: float, monotone: bool = True):
        self.space = space
        self.genes = Genes(space)
        self.weights = weights
        self.base = base
        self.monotone = monotone

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Predicted accuracy in [0, 1], (n, columns) to (n,) float64."""
        result = np.empty(len(rows))
        # Blocks of one size: a network's prediction does not depend on which others are asked for with it.
        for start in range(0, len(rows), 4096):
            part = rows[start : start + 4096]
            x = encode(self.genes, part, self.monotone)
            for layer in range(3):
                x = x @ self.weights[f"{layer}.weight"].T + self.weights[f"{layer}.bias"]
                convex = x.shape[1] // 2 if self.monotone else x.shape[1]
                x = np.hstack([np.maximum(x[:, :convex], 0), np.minimum(x[:, convex:], 0)])
            result[start : start + len(part)] = (x @ self.weights["3.weight"].T)[:, 0] + self.base
        return np.clip(np.round(result, 6), 0, 1)

    def save(self, folder: Path, quality: Quality | None = None) -> None:
        """Write ``predictor.safetensors`` and ``predictor.json``."""
        from safetensors.numpy import save

        write_bytes(folder / "predictor.safetensors", save({name: np.ascontiguousarray(array) for name, array in self.weights.items()}))
        write_json(
            folder / "predictor.json", {"space": self.space.fingerprint(), "base": self.base, "monotone": self.monotone, "quality": quality}
        )

    @staticmethod
    def load(folder: Path, space: Space) -> Predictor:
        """Read a predictor back.

        Raises:
            InputError: if there is none, it is damaged or of another space.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        head = read_json(folder / "predictor.json", "predictor")
        try:
            if head["space"] != space.fingerprint():
                raise InputError(f"the predictor in {folder} was made for another space; run `moofa train` again")
            weights = load((folder / "predictor.safetensors").read_bytes())
            predictor = Predictor(space, weights, float(head["base"]), bool(head.get("monotone", False)))
            predictor(predictor.genes.encode([space.smallest()]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the predictor in {folder} is damaged ({type(error).__name__}); run `moofa train` again") from error
        return predictor


def encode(genes: Genes, rows: np.ndarray, monotone: bool = False) -> np.ndarray:
    """Gene rows to features of 0 and 1, (n, features) float64; depth shows as missing blocks.

    Args:
        genes: of the space.
        rows: gene rows (n, columns).
        monotone: resolutions and expansions as one feature per step that was taken, so that a larger one adds to a smaller
            one; else all one-hot (Once-For-All). Kernels are one-hot either way.
    """
    rows = np.asarray(rows)
    active = genes.active(rows)

    def options(column: int, ordered: bool) -> np.ndarray:
        size = genes.sizes[column]
        chosen = rows[:, [column]] >= np.arange(1, size) if ordered else rows[:, [column]] == np.arange(size)
        return chosen & active[:, [column]]

    parts = [options(0, monotone)]
    for columns in genes.block_columns:
        for kernel, expand in columns:
            parts += [options(kernel, False), options(expand, monotone)]
    return np.hstack(parts).astype(np.float64)


def fit_predictor(space: Space, rows: np.ndarray, accuracies: np.ndarray, config: PredictorConfig) -> tuple[Predictor, Quality]:
    """Train a predictor on measured networks.

    Args:
        space: the space.
        rows: gene rows (n, columns).
        accuracies: (n,) in [0, 1].
        config: settings.

    Returns:
        The predictor, and its quality on the held-out share.

    Raises:
        InputError: with fewer than ten networks.
    """
    import torch
    from scipy.stats import kendalltau, pearsonr
    from torch import nn

    if len(rows) < 10:
        raise InputError(f"{len(rows)} measured networks are too few for a predictor; measure at least 10")
    genes = Genes(space)
    features = encode(genes, rows, config.monotone)
    order = np.random.default_rng(config.seed).permutation(len(rows))
    held = order[: max(2, round(config.held_out * len(rows)))]
    train = order[len(held) :]
    base = float(accuracies[train].mean())
    # Accuracies differ by little: the network learns them in units of their spread.
    spread = float(accuracies[train].std()) or 1.0
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        widths = [features.shape[1], *([config.hidden] * 3)]
        linear = [*map(nn.Linear, widths[:-1], widths[1:]), nn.Linear(config.hidden, 1, bias=False)]
        matrices = [layer.weight for layer in linear]

        def model(x: torch.Tensor) -> torch.Tensor:
            for layer in linear[:3]:
                x = layer(x)
                if config.monotone:
                    convex, concave = x.chunk(2, 1)
                    x = torch.cat([convex.relu(), concave.clamp(max=0)], 1)
                else:
                    x = x.relu()
            return linear[3](x)[:, 0]

        if config.monotone:
            # Few large weights among many small ones, and rows that sum to about 1: with equal ones all units would be alike.
            for matrix in matrices:
                matrix.data.exponential_().square_().mul_(0.5 / matrix.shape[1])
        x = torch.tensor(features[train], dtype=torch.float32)
        y = torch.tensor((accuracies[train] - base) / spread, dtype=torch.float32)
        optimizer = torch.optim.Adam([p for layer in linear for p in layer.parameters()], lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
        for _ in range(config.epochs):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x[part]), y[part]).backward()
                optimizer.step()
                if config.monotone:
                    for matrix in matrices:
                        matrix.data.clamp_(min=0)
            schedule.step()
    weights: dict[str, Any] = {}
    for number, layer in enumerate(linear):
        scale = spread if number == 3 else 1.0
        weights[f"{number}.weight"] = layer.weight.detach().double().numpy() * scale
        if number < 3:
            weights[f"{number}.bias"] = layer.bias.detach().double().numpy()
    predictor = Predictor(space, weights, base, config.monotone)
    predicted, measured = predictor(rows[held]), accuracies[held]
    varied = np.ptp(predicted) > 0 and np.ptp(measured) > 0
    quality = Quality(
        networks=len(rows),
        held_out=len(held),
        kendall_tau=float(kendalltau(predicted, measured).statistic) if varied else None,
        pearson_r=float(pearsonr(predicted, measured).statistic) if varied else None,
        rmse=float(np.sqrt(np.mean((predicted - measured) ** 2))),
    )
    return predictor, quality

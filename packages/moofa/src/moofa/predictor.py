"""Predict a network's accuracy from its genes: a small MLP, trained with torch, evaluated with numpy.

Encoding and network follow Once-For-All's predictor: one-hot resolution, and per block one-hot kernel and expansion, all
zero where the block does not exist; three hidden layers, no output bias but the mean accuracy.
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
        seed: of the split and the weights.
    """

    hidden: int = 128
    epochs: int = 300
    lr: float = 1e-3
    weight_decay: float = 1e-4
    held_out: float = 0.2
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
    """

    def __init__(self, space: Space, weights: dict[str, np.ndarray], base: float):
        self.space = space
        self.genes = Genes(space)
        self.weights = weights
        self.base = base

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Predicted accuracy, (n, columns) to (n,) float64."""
        result = np.empty(len(rows))
        # Blocks of one size: a network's prediction does not depend on which others are asked for with it.
        for start in range(0, len(rows), 4096):
            part = rows[start : start + 4096]
            x = encode(self.genes, part)
            for layer in range(3):
                x = np.maximum(x @ self.weights[f"{layer}.weight"].T + self.weights[f"{layer}.bias"], 0)
            result[start : start + len(part)] = (x @ self.weights["3.weight"].T)[:, 0] + self.base
        return np.round(result, 6)

    def save(self, folder: Path, quality: Quality | None = None) -> None:
        """Write ``predictor.safetensors`` and ``predictor.json``."""
        from safetensors.numpy import save

        write_bytes(folder / "predictor.safetensors", save({name: np.ascontiguousarray(array) for name, array in self.weights.items()}))
        write_json(folder / "predictor.json", {"space": self.space.fingerprint(), "base": self.base, "quality": quality})

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
            predictor = Predictor(space, weights, float(head["base"]))
            predictor(predictor.genes.encode([space.smallest()]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the predictor in {folder} is damaged ({type(error).__name__}); run `moofa train` again") from error
        return predictor


def encode(genes: Genes, rows: np.ndarray) -> np.ndarray:
    """Gene rows to one-hot features, (n, features) float64; depth shows as missing blocks."""
    rows = np.asarray(rows)
    active = genes.active(rows)
    parts = [rows[:, [0]] == np.arange(genes.sizes[0])]
    for columns in genes.block_columns:
        for pair in columns:
            parts += [(rows[:, [column]] == np.arange(genes.sizes[column])) & active[:, [column]] for column in pair]
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
    features = encode(genes, rows)
    order = np.random.default_rng(config.seed).permutation(len(rows))
    held = order[: max(2, round(config.held_out * len(rows)))]
    train = order[len(held) :]
    base = float(accuracies[train].mean())
    # Accuracies differ by little: the network learns them in units of their spread.
    spread = float(accuracies[train].std()) or 1.0
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        layers: list[nn.Module] = []
        width = features.shape[1]
        for _ in range(3):
            layers += [nn.Linear(width, config.hidden), nn.ReLU()]
            width = config.hidden
        model = nn.Sequential(*layers, nn.Linear(width, 1, bias=False))
        x = torch.tensor(features[train], dtype=torch.float32)
        y = torch.tensor((accuracies[train] - base) / spread, dtype=torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
        for _ in range(config.epochs):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x[part])[:, 0], y[part]).backward()
                optimizer.step()
            schedule.step()
    linear = [module for module in model if isinstance(module, nn.Linear)]
    weights: dict[str, Any] = {}
    for number, layer in enumerate(linear):
        scale = spread if number == 3 else 1.0
        weights[f"{number}.weight"] = layer.weight.detach().double().numpy() * scale
        if number < 3:
            weights[f"{number}.bias"] = layer.bias.detach().double().numpy()
    predictor = Predictor(space, weights, base)
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

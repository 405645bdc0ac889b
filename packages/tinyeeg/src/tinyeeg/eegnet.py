"""EEGNet (Lawhern et al., J. Neural Eng. 15:056013, 2018) on raw windows, as a scikit-learn classifier; needs the extra `torch`.

The network is written here in a page rather than taken from braindecode, which brings many further packages. For the same weights it
gives the numbers of braindecode's `EEGNet` (tests).

Dimensions: N windows, C channels, L samples, K classes, F1 temporal filters, D spatial filters of each.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from edge_shared.errors import InputError, require
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from tinyeeg import presets, protocols, splits
from tinyeeg.chain import Chain
from tinyeeg.protocols import Evaluation
from tinyeeg.splits import Fold
from tinyeeg.table import Table

if TYPE_CHECKING:
    from torch import nn

CLIP = 8.0  # spreads: one artefact must not set the scale of a batch norm


def network(
    channels: int, samples: int, classes: int, *, kernel: int = 64, f1: int = 8, d: int = 2, dropout: float = 0.25
) -> nn.Sequential:
    """EEGNet-F1,D on (N, 1, C, L): temporal convolution, spatial depthwise, separable convolution, linear.

    Args:
        channels, samples, classes: C, L, K; L is 32 or more, since the pools divide it by 32.
        kernel: samples of the temporal filters; the paper takes half a second.
        f1, d: temporal filters, and spatial filters of each.
        dropout: share of activations.
    """
    require("torch", "tinyeeg[torch]")
    from collections import OrderedDict

    from torch import nn

    if samples < 32:
        raise InputError(f"windows of {samples} samples are too short for EEGNet; it takes 32 or more")
    f2 = f1 * d

    def norm(width: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(width, momentum=0.01, eps=1e-3)

    # Even kernels padded on both sides give one sample more than came in, as in the reference code; the pools drop it.
    width = ((samples + 2 * (kernel // 2) - kernel + 1) // 4 + 1) // 8
    return nn.Sequential(
        OrderedDict(
            conv_temporal=nn.Conv2d(1, f1, (1, kernel), padding=(0, kernel // 2), bias=False),
            bnorm_temporal=norm(f1),
            conv_spatial=nn.Conv2d(f1, f2, (channels, 1), groups=f1, bias=False),
            bnorm_1=norm(f2),
            elu_1=nn.ELU(),
            pool_1=nn.AvgPool2d((1, 4)),
            drop_1=nn.Dropout(dropout),
            conv_separable_depth=nn.Conv2d(f2, f2, (1, 16), padding=(0, 8), groups=f2, bias=False),
            conv_separable_point=nn.Conv2d(f2, f2, 1, bias=False),
            bnorm_2=norm(f2),
            elu_2=nn.ELU(),
            pool_2=nn.AvgPool2d((1, 8)),
            drop_2=nn.Dropout(dropout),
            flatten=nn.Flatten(),
            classifier=nn.Linear(f2 * width, classes),
        )
    )


class EEGNetClassifier(ClassifierMixin, BaseEstimator):
    """EEGNet as a classifier on windows of shape (N, C, L), in any unit: each channel is scaled by its spread in the training set.

    Args:
        kernel: samples of the temporal filters; half a second is usual.
        epochs: passes over the training set.
        lr: learning rate of Adam at its highest.
        batch_size: windows per step.
        dropout: share of activations.
        random_state: of weights, order and dropout.

    Attributes:
        classes_: names, shape (K,).
        network_: the trained `torch.nn.Module` on (N, 1, C, L).
        scale_: spread of each channel, shape (C,).
    """

    def __init__(
        self, kernel: int = 64, epochs: int = 20, lr: float = 2e-3, batch_size: int = 64, dropout: float = 0.25, random_state: int = 0
    ) -> None:
        self.kernel, self.epochs, self.lr, self.batch_size = kernel, epochs, lr, batch_size
        self.dropout, self.random_state = dropout, random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train on windows (N, C, L) and their states (N,), which are weighed equally."""
        require("torch", "tinyeeg[torch]")
        import torch
        from edge_shared.training import TrainConfig
        from edge_shared.training import fit as train
        from torch.nn import functional
        from torch.utils.data import DataLoader, TensorDataset

        X = _windows(X)
        y = np.asarray(y)
        check_classification_targets(y)
        if len(y) != len(X):
            raise InputError(f"X has {len(X)} windows, y has {len(y)} labels")
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y holds one class only: {self.classes_[0]!r}")
        spread = X.std(axis=(0, 2))
        self.scale_ = np.where(spread > 1e-9, spread, 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.network_ = network(X.shape[1], X.shape[2], len(self.classes_), kernel=self.kernel, dropout=self.dropout)
            share = np.bincount(labels) / len(labels)
            weight = torch.tensor(1 / (len(share) * share), dtype=torch.float32)
            order = torch.Generator().manual_seed(self.random_state)
            loader = DataLoader(
                TensorDataset(self._scaled(X), torch.from_numpy(labels)), batch_size=self.batch_size, shuffle=True, generator=order,
                drop_last=len(X) % self.batch_size == 1,  # a batch norm cannot take one window
            )  # fmt: skip
            config = TrainConfig(epochs=self.epochs, lr=self.lr, optimizer="adam", weight_decay=0.0, seed=self.random_state)
            train(
                self.network_, loader, None, config, description="EEGNet", on_step=lambda step: _limit(step.model), device="cpu",
                loss=lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1], weight=weight),
            )  # fmt: skip
        self.network_.eval()
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities, (N, K)."""
        check_is_fitted(self)
        import torch

        inputs = self._scaled(_windows(X))
        with torch.inference_mode():
            parts = [self.network_(part).double().softmax(1) for part in inputs.split(256)]
        return torch.cat(parts).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """States, (N,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _scaled(self, X: NDArray[np.float64]) -> Any:
        import torch

        if X.shape[1] != len(self.scale_):
            raise InputError(f"X has {X.shape[1]} channels, the model was trained on {len(self.scale_)}")
        scaled = np.clip(X / self.scale_[:, None], -CLIP, CLIP)
        return torch.from_numpy(scaled.astype(np.float32)[:, None])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def _windows(X: Any) -> NDArray[np.float64]:
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 3 or not np.isfinite(X).all():
        raise InputError(f"X has shape {X.shape}; it is (n_windows, n_channels, n_times) without NaN")
    return X


def _limit(model: nn.Module) -> None:
    """The paper's constraint: spatial filters have a norm of 1 at most."""
    import torch

    with torch.no_grad():
        weight = model.get_parameter("conv_spatial.weight")
        weight.copy_(weight.renorm(2, 0, 1.0))


def window_chain(sfreq: float, channels: tuple[str, ...]) -> Chain:
    """Windows for EEGNet: 1 Hz high-pass, 2 s, a decision every half second."""
    return replace(presets.compact(sfreq, channels), name="eegnet-windows")


def evaluate(table: Table, protocol: str, *, calibration_s: float = 20.0, seed: int = 0, **parameters: Any) -> Evaluation:
    """Score `EEGNetClassifier` under a protocol.

    Args:
        table: what `tinyeeg.table.raw_windows` cut.
        protocol: see `tinyeeg.splits`.
        calibration_s: for ``adaptable``.
        seed: of network and splits.
        parameters: of the classifier.
    """

    def fit_predict(fold: Fold) -> tuple[NDArray[np.int64], dict[str, Any]]:
        fitted = _classifier(table, seed, parameters).fit(table.X[fold.train], table.windows.y[fold.train])
        return fitted.predict(table.X[fold.test]), {}

    plan = splits.split(protocol, table.windows, calibration_s=calibration_s, seed=seed)
    return protocols.scored(table.windows, plan, fit_predict, protocol, "eegnet", "global")


def save(folder: str | Path, table: Table, *, seed: int = 0, **parameters: Any) -> dict[str, str]:
    """Fit on all windows and write ``model.safetensors``, ``recipe.json`` and the verified ``model.onnx``; returns the names.

    The input of the network is microvolts divided by ``recipe.json``'s normalisation ``scale`` and clipped to +-8, shape (N, 1, C, L).
    """
    import torch
    from edge_shared.artifacts import save_model

    fitted = _classifier(table, seed, parameters).fit(table.X, table.windows.y)
    normalisation = {"scale": fitted.scale_.tolist(), "clip": CLIP, "channels": table.chain.channels, "sfreq": table.chain.sfreq}
    example = torch.zeros(2, 1, *table.X.shape[1:])
    save_model(folder, fitted.network_, example, classes=table.windows.classes, normalisation=normalisation)
    return {"model": "model.safetensors", "recipe": "recipe.json", "onnx": "model.onnx"}


def cost(channels: int, samples: int, classes: int, kernel: int) -> dict[str, int]:
    """Parameters and multiplications per decision of the network, from the shapes."""
    f1, f2 = 8, 16
    after = samples + 2 * (kernel // 2) - kernel + 1
    pooled = after // 4
    last = (pooled + 1) // 8
    parameters = f1 * kernel + f2 * channels + f2 * 16 + f2 * f2 + 2 * (f1 + 2 * f2) + classes * (f2 * last + 1)
    macs = f1 * kernel * channels * after + f2 * channels * after + (f2 * 16 + f2 * f2) * (pooled + 1) + classes * f2 * last
    return {"parameters": parameters, "multiplications_per_decision": macs}


def _classifier(table: Table, seed: int, parameters: dict[str, Any]) -> EEGNetClassifier:
    return EEGNetClassifier(**{"kernel": round(table.chain.sfreq / 2), "random_state": seed, **parameters})

"""The deep models of the study: LSTM, reduced Inception-ResNet DCNN; and an attention model of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from edge_shared.training import TrainConfig, fit
from torch import nn
from torch.nn import functional

from edge_ids.can.frames import Array


class FrameLSTM(nn.Module):
    """One LSTM layer of 512 and a linear layer, on sequences of one frame: the study's per-frame classifier.

    Args:
        inputs: features per frame (9: ID and bytes; 10 with the length).
        outputs: 1 for binary, else classes.
        hidden: units.
    """

    def __init__(self, inputs: int = 9, outputs: int = 1, hidden: int = 512):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Logits (B, outputs) of frames (B, inputs)."""
        return self.head(self.lstm(x_BF[:, None])[0][:, -1])


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True) -> nn.Sequential:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (size[0] // 2, size[1] // 2) if same else 0
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _Block(nn.Module):
    """Parallel branches, concatenated, back to the input's width by a linear 1x1 convolution."""

    def __init__(self, branches: list[nn.Module], joined: int, width: int, residual: bool):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.expand = nn.Conv2d(joined, width, 1, bias=False)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.expand(torch.cat([branch(x) for branch in self.branches], dim=1))
        return functional.relu(x + out) if self.residual else out


class _Reduction(nn.Module):
    def __init__(self, branches: list[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class DCNN(nn.Module):
    """Reduced Inception-ResNet of Song, Woo and Kim (2020) as the study has it.

    Args:
        outputs: 1 for binary, else classes.
        residual: add the input in blocks A and B, as an Inception-ResNet does and the study's code does not.
    """

    def __init__(self, outputs: int = 1, residual: bool = False):
        super().__init__()
        pool = nn.MaxPool2d(3, 2)
        self.stem = nn.Sequential(
            _conv(1, 32, 3), _conv(32, 32, 3, same=False), pool, _conv(32, 64, 1), _conv(64, 128, 3), _conv(128, 128, 3)
        )  # fmt: skip
        a: list[nn.Module] = [
            _conv(128, 32, 1),
            nn.Sequential(_conv(128, 32, 1), _conv(32, 32, 3)),
            nn.Sequential(_conv(128, 32, 1), _conv(32, 32, 3), _conv(32, 32, 3)),
        ]
        self.a = _Block(a, 96, 128, residual)
        self.reduce_a = _Reduction(
            [
                nn.MaxPool2d(3, 2),
                _conv(128, 192, 3, 2, same=False),
                nn.Sequential(_conv(128, 96, 1), _conv(96, 96, 3), _conv(96, 128, 3, 2, same=False)),
            ]
        )
        b: list[nn.Module] = [_conv(448, 64, 1), nn.Sequential(_conv(448, 64, 1), _conv(64, 64, (1, 3)), _conv(64, 64, (3, 1)))]
        self.b = _Block(b, 128, 448, residual)
        self.reduce_b = _Reduction(
            [
                nn.MaxPool2d(3, 2),
                nn.Sequential(_conv(448, 128, 1), _conv(128, 192, 3, 2, same=False)),
                nn.Sequential(_conv(448, 128, 1), _conv(128, 128, 3, 2, same=False)),
                nn.Sequential(_conv(448, 128, 1), _conv(128, 128, 3), _conv(128, 128, 3, 2, same=False)),
            ]
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.6), nn.Linear(896, outputs))

    def forward(self, x_B1LI: torch.Tensor) -> torch.Tensor:
        """Logits (B, outputs) of ID blocks (B, 1, 29, 29)."""
        return self.head(self.reduce_b(self.b(self.reduce_a(self.a(self.stem(x_B1LI.float()))))))


class WindowAttention(nn.Module):
    """A two-layer transformer encoder over 32 frames, mean-pooled. Ours: the study's TAN has no public definition.

    Args:
        outputs: 1 for binary, else classes.
        inputs: features per frame, see `edge_ids.can.models.features.frame_windows`.
        width: of the model.
        window: frames.
    """

    def __init__(self, outputs: int = 1, inputs: int = 38, width: int = 64, window: int = 32):
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.zeros(window, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
        """Logits (B, outputs) of windows (B, 32, 38)."""
        return self.head(self.encoder(self.embed(x_BLF) + self.position).mean(dim=1))


_SETTINGS = {  # epochs, batch, learning rate: the study's for LSTM and DCNN
    "lstm": (10, 512, 1e-4),
    "dcnn": (30, 64, 1e-3),
    "attention": (10, 64, 1e-3),
}


class DeepClassifier:
    """Train and apply one of the networks; the best-trained weights are the last ones, as in the study.

    Args:
        name: ``lstm``, ``dcnn`` or ``attention``.
        seed: of initialisation and order.
        epochs, lr: None takes the study's.
        scale: divide LSTM inputs by their training maximum (the study feeds unscaled integers: False).
        residual: of the DCNN.
    """

    def __init__(
        self, name: str, *, seed: int = 0, epochs: int | None = None, lr: float | None = None, scale: bool = False, residual: bool = False
    ):
        default_epochs, self.batch, default_lr = _SETTINGS[name]
        self.name, self.seed, self.scale, self.residual = name, seed, scale, residual
        self.epochs = default_epochs if epochs is None else epochs
        self.lr = default_lr if lr is None else lr

    def fit(self, x: Array, y: Array, classes: int) -> DeepClassifier:
        """Train on samples (N, ...) with labels below `classes`."""
        torch.manual_seed(self.seed)
        self.classes = classes
        outputs = 1 if classes == 2 else classes
        self.divisor = np.maximum(np.abs(x).max(axis=0, keepdims=True), 1) if self.scale else 1.0
        self.model: nn.Module = {
            "lstm": lambda: FrameLSTM(x.shape[1], outputs),
            "dcnn": lambda: DCNN(outputs, self.residual),
            "attention": lambda: WindowAttention(outputs, x.shape[-1], window=x.shape[1]),
        }[self.name]()
        data = torch.utils.data.TensorDataset(self._input(x), torch.from_numpy(y.astype(np.int64)))
        generator = torch.Generator().manual_seed(self.seed)
        loader: Any = torch.utils.data.DataLoader(data, self.batch, shuffle=True, generator=generator)
        config = TrainConfig(
            epochs=self.epochs, batch_size=self.batch, lr=self.lr, optimizer="adam", weight_decay=0.0, schedule="constant", seed=self.seed
        )
        self.history = fit(self.model, loader, None, config, loss=_loss, device="cpu", description=self.name)
        return self

    def _input(self, x: Array) -> torch.Tensor:
        return torch.from_numpy(np.asarray(x / self.divisor if self.scale else x, dtype=np.float32))

    @torch.no_grad()
    def predict_proba(self, x: Array) -> Array:
        """Probabilities (N, classes)."""
        self.model.eval()
        parts = [self.model(self._input(x[start : start + 2048])) for start in range(0, len(x), 2048)]
        if not parts:
            return np.zeros((0, self.classes))
        logits = torch.cat(parts)
        if self.classes == 2:
            attack = torch.sigmoid(logits[:, 0]).double().numpy()
            return np.stack([1 - attack, attack], axis=1)
        return torch.softmax(logits.double(), dim=1).numpy()


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    logits = model(x)
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())
    return functional.cross_entropy(logits, y)


def parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

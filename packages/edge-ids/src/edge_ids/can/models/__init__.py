"""The models of the comparative study (Guerra et al., CSCS 2024), one file each, behind one small interface.

Classical: Random Forest, LightGBM, LCCDE, on the ID and eight bytes of single frames. Deep: LSTM on single frames, the
reduced Inception-ResNet (DCNN) on 29 IDs, an attention model on windows of frames (ours: the paper's TAN is not public).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from edge_shared.errors import InputError

if TYPE_CHECKING:
    from edge_ids.can.frames import Array

NAMES = ("random-forest", "lightgbm", "lccde", "lstm", "dcnn", "attention")
WINDOWED = {"dcnn": 29, "attention": 32}


class Classifier(Protocol):
    """What every model does."""

    def fit(self, x: Array, y: Array, classes: int) -> Classifier:
        """Train on samples (N, ...) with integer labels (N)."""

    def predict_proba(self, x: Array) -> Array:
        """Probabilities (N, classes)."""


def make(name: str, *, seed: int = 0, epochs: int | None = None, **options: Any) -> Classifier:
    """A model by name, untrained.

    Args:
        name: one of `NAMES`.
        seed: of everything random.
        epochs: of the deep models; None takes the paper's (LSTM 10, DCNN 30) or, for attention, 10.
        options: further settings of the model.

    Raises:
        InputError: for another name.
    """
    if name in ("random-forest", "lightgbm", "lccde"):
        from edge_ids.can.models import classical

        made: Any = {"random-forest": classical.RandomForest, "lightgbm": classical.LightGBM, "lccde": classical.LCCDE}[name](
            seed=seed, **options
        )
        return made
    if name in ("lstm", "dcnn", "attention"):
        from edge_ids.can.models import deep

        return deep.DeepClassifier(name, seed=seed, epochs=epochs, **options)
    raise InputError(f"model {name!r} is unknown; use one of {', '.join(NAMES)}")

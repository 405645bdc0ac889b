"""Plain PyTorch, and the codec of a layer that does not train: torch's own layers keep their input even then."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ondevice_train.compression._codec import Codec, Footprint, Saved
from ondevice_train.compression._geometry import Geometry


class Nothing(Codec):
    """Keeps nothing: for a frozen weight, whose layer only passes gradients on."""

    def encode(self, x: Tensor) -> Saved:
        """Nothing."""
        return ()

    def weight_gradient(self, saved: Saved, grad: Tensor, geometry: Geometry) -> Tensor:
        """There is none."""
        raise RuntimeError("this layer was frozen by the plan; its weight must not require a gradient")

    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """Nothing."""
        return {}

    def __repr__(self) -> str:
        """Say so."""
        return "frozen"

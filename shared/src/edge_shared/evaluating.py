"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to the mode that each module was in."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # By way of `train`, on which modules that remember something for evaluation (LeViT's attention biases) let go of it.
        model.train()
        for module, flag in flags:
            module.training = flag

"""Evaluation mode for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode; every module gets its own mode back, whatever happens."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # By way of `train`, on which modules that remember something for evaluation (LeViT's attention biases) let go of it.
        model.train()
        for module, flag in flags:
            module.training = flag

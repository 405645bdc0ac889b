"""Hyper-parameters: the paper's four settings, and our own for what the paper does not cover. Plain data, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edge_shared.errors import InputError

NeuralKind = Literal["graphids", "simpleae", "edge-aware"]
NEURAL_KINDS = ("graphids", "simpleae", "edge-aware")
PAIR_KINDS = ("graphids", "simpleae")
"""Those that give all flows of a pair of hosts one embedding."""
LEAST_STEPS = 10
"""Optimiser steps per epoch below which ``auto`` makes the batch smaller; the paper's own sets have 58 and more."""


@dataclass(frozen=True)
class NeuralConfig:
    """Settings of GraphIDS, SimpleAE and the edge-aware variant (GraphIDS, appendix B).

    Attributes:
        embedding: width of a flow's embedding (`edim_out`).
        graph_dropout: dropout on it.
        width: width d of the autoencoder.
        dropout: of the autoencoder.
        feed_forward: hidden width of the transformer's feed-forward part (PyTorch's default).
        heads: attention heads.
        window: flows per attention window.
        mask: share of closed attention pairs in training.
        fanout: in-edges sampled per host in training.
        batch: flows per optimiser step.
        lr: of AdamW.
        weight_decay: of the autoencoder.
        graph_weight_decay: of the graph encoder.
        epochs: at most.
        patience: epochs without a better validation PR-AUC before training stops.
        clip: largest gradient norm.
    """

    embedding: int = 72
    graph_dropout: float = 0.75
    width: int = 48
    dropout: float = 0.0
    feed_forward: int = 2048
    heads: int = 4
    window: int = 512
    mask: float = 0.15
    fanout: int = 32_768
    batch: int = 32_768
    lr: float = 1.1e-5
    weight_decay: float = 0.04574
    graph_weight_decay: float = 0.6
    epochs: int = 100
    patience: int = 20
    clip: float = 1.0


PAPER = {
    "unsw-v3": NeuralConfig(96, 0.6, 48, 0.0, batch=16_384, lr=1e-4, weight_decay=0.04),
    "cse-v3": NeuralConfig(64, 0.5, 32, 0.2, batch=16_384, lr=1e-4, weight_decay=0.03987),
    "unsw-v2": NeuralConfig(),
    "cse-v2": NeuralConfig(64, 0.5, 32, 0.2, batch=16_384, lr=7.4235e-5, weight_decay=0.01126),
}
"""The four published settings."""

OWN = {
    "graphids": NeuralConfig(64, 0.5, 32, 0.1, batch=512, lr=5e-4, weight_decay=0.01),
    "simpleae": NeuralConfig(64, 0.5, 32, 0.0, batch=512, lr=5e-4, weight_decay=0.01),
    "edge-aware": NeuralConfig(32, 0.1, 16, 0.0, feed_forward=128, window=128, batch=512, lr=2e-3, weight_decay=0.01, graph_weight_decay=0.01),
}  # fmt: skip
"""Ours (preset ``own``): smaller steps and batches, since a small set gives the paper's settings one step per epoch."""

PRESETS = ("auto", "own", *PAPER)


def preset(
    name: str, kind: NeuralKind, schema: str, epochs: int | None = None, patience: int | None = None,
    flows: int | None = None,
) -> NeuralConfig:  # fmt: skip
    """The settings called `name` for a model of `kind`.

    ``auto`` gives GraphIDS the paper's UNSW-NB15 settings (v3 for flows of schema nf-v3, else v2), the other models our own. A set of `flows` training
    flows that leaves GraphIDS few steps per epoch gets smaller batches of equal size, down to one attention window.

    Raises:
        InputError: for an unknown name, or the edge-aware variant with a setting of the paper (which does not know it).
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: choose one of {', '.join(PRESETS)}")
    automatic = name == "auto"
    if automatic:
        name = ("unsw-v3" if schema == "nf-v3" else "unsw-v2") if kind == "graphids" else "own"
    if kind == "edge-aware" and name != "own":
        raise InputError(f"--preset {name} is GraphIDS's; --model edge-aware has --preset own only")
    config = OWN[kind] if name == "own" else PAPER[name]
    if automatic and kind == "graphids" and flows is not None and flows < LEAST_STEPS * config.batch:
        steps = min(LEAST_STEPS, math.ceil(flows / config.window))
        config = replace(config, batch=math.ceil(flows / steps))
    return replace(config, epochs=config.epochs if epochs is None else epochs, patience=config.patience if patience is None else patience)

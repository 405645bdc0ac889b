"""The last layer, calibrated on the device from labelled decisions: linear discriminant analysis whose class means move to the wearer.

Training gives class means m0_k and the inverse covariance P in scaled feature space. From the wearer's labelled feature vectors f the
device takes, per state k, their mean f_k and their number n_k; then

    centre  c   = mean over states of f_k
    means   m_k = (n0 m0_k + n_k (f_k - c) / s) / (n0 + n_k)
    weights w_k = P m_k,  bias b_k = -1/2 m_k . w_k,  scores w_k . clip((f - c) / s) + b_k.

m_k is the maximum a posteriori mean under a normal prior worth n0 decisions, the rule of MAP adaptation (Gauvain and Lee, IEEE Trans.
Speech Audio Process. 2:291, 1994, eq. 18) with the covariance kept. The memory is K (F + 1) numbers, whatever the length.
`solve` repeats the C program's operations in their order in float32, so that both give the same bits.

Dimensions: N decisions, F features, K states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray
from tinyeeg import protocols
from tinyeeg.protocols import Evaluation
from tinyeeg.table import Table

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Prior:
    """What training knows: all that the device needs beside the chain.

    Attributes:
        classes: K names.
        means: scaled class means, shape (K, F).
        precision: inverse covariance of scaled features, shape (F, F).
        center: the average person's mean feature vector, decibels, shape (F,).
        inverse: 1 / spread of each feature, shape (F,).
        clip: largest magnitude of a scaled feature.
        weight: n0, decisions that the prior is worth.
    """

    classes: tuple[str, ...]
    means: F32
    precision: F32
    center: F32
    inverse: F32
    clip: float
    weight: float


@dataclass(frozen=True)
class Layer:
    """The last layer: ``weights`` (K, F), ``bias`` (K,), ``center`` (F,), float32."""

    weights: F32
    bias: F32
    center: F32


def prior_of(table: Table, evaluation: Evaluation, weight: float = 40.0) -> Prior:
    """Class means and covariance of the training set, from tinyeeg's LDA fitted on all its windows.

    Args:
        table: features of the training recordings.
        evaluation: says how the features are centred.
        weight: n0. Decisions overlap, so a minute of them is far fewer independent looks than its 100 decisions.

    Raises:
        InputError: for a model that is no LDA.
    """
    if evaluation.model != "lda":
        raise InputError(f"the calibration on the device moves the class means of --model lda, not of {evaluation.model}")
    windows = table.windows
    X = protocols.centred(table.X, windows, evaluation.normalise, evaluation.protocol)
    pipeline, _ = protocols.fit(X, windows, evaluation.protocol, model="lda", tune=False, seed=0)
    baseline, model = pipeline.named_steps["baseline"], pipeline.named_steps["model"]
    center = baseline.center_
    if evaluation.normalise != "global":
        keys = protocols.wearers(windows, evaluation.normalise, evaluation.protocol)
        center = center + np.mean([table.X[keys == key].mean(axis=0) for key in np.unique(keys)], axis=0)
    single: Any = np.float32
    return Prior(
        windows.classes, single(model.means_), single(np.linalg.inv(model.covariance_)), single(center), single(1 / baseline.scale_),
        float(baseline.clip), float(weight),
    )  # fmt: skip


def solve(prior: Prior, features: F32 | None = None, states: NDArray[np.int64] | None = None) -> Layer:
    """The layer after calibration, in float32 and in the C program's order of operations.

    Args:
        prior: from training.
        features: labelled feature vectors in the order of time, decibels, shape (N, F); None for the layer as shipped.
        states: their states, shape (N,).
    """
    count_of_states, width = prior.means.shape
    total = np.zeros((count_of_states, width), np.float32)
    count = np.zeros(count_of_states, np.float32)
    if features is not None and states is not None:
        for row, state in zip(np.asarray(features, np.float32), states, strict=True):
            total[state] += row
            count[state] += 1
    complete = bool((count > 0).all())
    if not complete:
        count[:] = 0
    mean = total / count[:, None] if complete else np.zeros_like(total)
    center = prior.center
    if complete:
        sums = np.zeros(width, np.float32)
        for row in mean:
            sums = sums + row
        center = sums / np.float32(count_of_states)
    scaled = (mean - center) * prior.inverse
    weight = np.float32(prior.weight)
    moved = (weight * prior.means + count[:, None] * scaled) / (weight + count[:, None])
    weights, bias = np.zeros_like(moved), np.zeros(count_of_states, np.float32)
    for j in range(width):
        weights += prior.precision[:, j] * moved[:, j : j + 1]
    for i in range(width):
        bias += moved[:, i] * weights[:, i]
    return Layer(weights, np.float32(-0.5) * bias, center)


def decide(prior: Prior, layer: Layer, features: NDArray[Any]) -> NDArray[np.int64]:
    """Index of the state for each feature vector (N, F), shape (N,)."""
    z = np.clip((np.asarray(features, np.float32) - layer.center) * prior.inverse, -np.float32(prior.clip), np.float32(prior.clip))
    scores = np.broadcast_to(layer.bias, (len(z), len(layer.bias))).copy()
    for i in range(z.shape[1]):
        scores += layer.weights[:, i] * z[:, i : i + 1]
    return scores.argmax(axis=1)
